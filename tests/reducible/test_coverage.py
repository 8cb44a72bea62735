"""A quick part of the study: networks of every source, half of every block removed, checked a second time."""

from __future__ import annotations

import warnings

import pytest
from reducible.trial import EQUAL, attempt

from reducible import catalog

QUICK = (
    *("torchvision/squeezenet1_1", "torchvision/shufflenet_v2_x0_5", "torchvision/mobilenet_v3_small"),
    *("torchvision/mnasnet0_5", "torchvision/lraspp_mobilenet_v3_large", "torchvision/raft_small"),
    *("torchvision/resnet18", "torchvision/efficientnet_b0", "torchvision/swin_t"),
    *("timm/test_efficientnet_ln", "timm/test_efficientnet_evos", "timm/test_resnet", "timm/test_convnext2"),
    *("timm/test_byobnet", "timm/test_vit", "timm/test_vit3", "timm/test_mambaout", "timm/test_coatnet"),
    *("timm/test_maxvit", "timm/test_nfnet", "timm/test_vit_relpos", "timm/starnet_s050", "timm/lcnet_035"),
    *("timm/dla46_c", "timm/edgenext_xx_small", "timm/ese_vovnet19b_slim", "timm/fasternet_t0"),
    *("timm/cait_xxs24_224 of depth 6", "timm/regnetx_002", "timm/inception_next_atto", "timm/levit_128s"),
    *("transformers/bloom", "transformers/albert", "transformers/layoutlm", "transformers/ast"),
    *("transformers/patchtsmixer", "transformers/mamba", "transformers/jetmoe", "transformers/marian"),
    *("transformers/mixtral", "transformers/detr", "transformers/ijepa"),
    *("hand/lstm projected", "hand/fused projection", "hand/deep tied autoencoder", "hand/early exits"),
    *("hand/weights from a network", "hand/long convolution"),
)


@pytest.mark.parametrize("key", QUICK)
def test_half_of_the_units_go(key: str) -> None:
    source = key.partition("/")[0]
    if source in ("torchvision", "timm", "transformers"):
        pytest.importorskip(source, reason=f"{source} is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the architecture's own
        trial = attempt(catalog.find(key))
    assert trial.outcome == "ok", trial.reason
    assert trial.check_error is None or trial.check_error <= EQUAL["float32"]


def test_every_source_has_a_part() -> None:
    assert len(QUICK) >= 40
    assert {key.partition("/")[0] for key in QUICK} >= {"torchvision", "timm", "transformers", "hand"}
