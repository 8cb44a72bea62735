"""Every family of torchvision, on the smallest inputs they take: what is looked at is their structure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.detection import backbone_utils
from torchvision.models.video import mvit

from reducible.architecture import Architecture, Built

SMALL = (3, 64, 64)
CLIP = (3, 8, 64, 64)
Make = Callable[[], nn.Module]


def named(name: str, **arguments: Any) -> Make:
    """The builder that torchvision registers under this name, with random weights."""
    return lambda: models.get_model(name, weights=None, **arguments)


def case(name: str, family: str, shape: tuple[int, ...] = SMALL, make: Make | None = None) -> Architecture:
    """An architecture with one tensor of this shape, without the batch, as its input."""

    def build(batch: int) -> Built:
        torch.manual_seed(0)
        return Built((make or named(name))(), (torch.randn(batch, *shape),))

    return Architecture(name, "torchvision", family, build)


def pictures(family: str, *names: str) -> list[Architecture]:
    """Classifiers that take pictures of any size."""
    return [case(name, family) for name in names]


def segmentation(name: str) -> Architecture:
    """With the auxiliary classifier where the family has one, as it is trained."""
    more = {} if name.startswith("lraspp") else {"aux_loss": True}
    return case(name, "segmentation", make=named(name, weights_backbone=None, num_classes=21, **more))


def clips(name: str) -> Make:
    """A multiscale vision transformer for small clips; its builder takes no sizes."""
    original = mvit._mvit

    def smaller(**arguments: Any) -> nn.Module:
        return original(**{**arguments, "spatial_size": (64, 64), "temporal_size": 4})

    def make() -> nn.Module:
        with mock.patch.object(mvit, "_mvit", smaller):
            return models.get_model(name, weights=None)

    return make


class LastFlow(nn.Module):
    """Optical flow between the two pictures of a pair, the last of two refinements."""

    def __init__(self, flow: nn.Module) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, pair: Tensor) -> Tensor:
        return self.flow(pair[:, 0], pair[:, 1], num_flow_updates=2)[-1]


class Head(nn.Module):
    """Backbone, feature pyramid and dense head of a one-stage detector, before any box is chosen."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.head(list(self.backbone(x).values()))


def detector(name: str) -> Architecture:
    def make() -> nn.Module:
        return Head(models.get_model(name, weights=None, weights_backbone=None, num_classes=21))

    return case(f"{name} (dense part)", "detection", make=make)


ARCHITECTURES: tuple[Architecture, ...] = (
    *pictures("AlexNet", "alexnet"),
    *pictures("ConvNeXt", "convnext_tiny", "convnext_small"),
    *pictures("DenseNet", "densenet121", "densenet161", "densenet169", "densenet201"),
    *pictures(
        "EfficientNet",
        "efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "efficientnet_b3", "efficientnet_b4",
        "efficientnet_v2_s",
    ),
    case("googlenet", "GoogLeNet", make=named("googlenet", aux_logits=False, init_weights=False)),
    case(
        "inception_v3", "Inception", (3, 96, 96),
        named("inception_v3", aux_logits=False, init_weights=False),
    ),
    case("maxvit_t", "MaxViT", (3, 224, 224)),
    *pictures("MNASNet", "mnasnet0_5", "mnasnet0_75", "mnasnet1_0", "mnasnet1_3"),
    *pictures("MobileNet", "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small"),
    *pictures(
        "RegNet",
        "regnet_x_400mf", "regnet_x_800mf", "regnet_x_1_6gf", "regnet_x_3_2gf", "regnet_x_8gf",
        "regnet_y_400mf", "regnet_y_800mf", "regnet_y_1_6gf", "regnet_y_3_2gf", "regnet_y_8gf",
    ),
    *pictures("ResNet", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *pictures("ResNeXt", "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
    *pictures("Wide ResNet", "wide_resnet50_2"),
    *pictures(
        "ShuffleNet", "shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0"
    ),
    *pictures("SqueezeNet", "squeezenet1_0", "squeezenet1_1"),
    *pictures("Swin", "swin_t", "swin_s", "swin_v2_t", "swin_v2_s"),
    *pictures("VGG", "vgg11", "vgg11_bn", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19_bn"),
    case("vit_b_16", "ViT", make=named("vit_b_16", image_size=64)),
    case("vit_b_32", "ViT", make=named("vit_b_32", image_size=64)),
    segmentation("deeplabv3_mobilenet_v3_large"),
    segmentation("deeplabv3_resnet50"),
    segmentation("deeplabv3_resnet101"),
    segmentation("fcn_resnet50"),
    segmentation("fcn_resnet101"),
    segmentation("lraspp_mobilenet_v3_large"),
    case("mc3_18", "video", CLIP),
    case("r3d_18", "video", CLIP),
    case("r2plus1d_18", "video", CLIP),
    case("s3d", "video", (3, 16, 224, 224)),
    case("swin3d_t", "video", CLIP),
    case("mvit_v1_b", "video", (3, 4, 64, 64), clips("mvit_v1_b")),
    case("mvit_v2_s", "video", (3, 4, 64, 64), clips("mvit_v2_s")),
    case("raft_small", "optical flow", (2, 3, 128, 128), lambda: LastFlow(models.get_model("raft_small"))),
    case("raft_large", "optical flow", (2, 3, 128, 128), lambda: LastFlow(models.get_model("raft_large"))),
    case(
        "resnet50 with a feature pyramid",
        "detection",
        make=lambda: backbone_utils.resnet_fpn_backbone(
            backbone_name="resnet50", weights=None, trainable_layers=5
        ),
    ),
    case(
        "mobilenet_v3_large with a feature pyramid",
        "detection",
        make=lambda: backbone_utils.mobilenet_backbone(
            backbone_name="mobilenet_v3_large", weights=None, fpn=True, trainable_layers=6
        ),
    ),
    detector("retinanet_resnet50_fpn"),
    detector("fcos_resnet50_fpn"),
)  # fmt: skip
