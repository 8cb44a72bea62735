"""Models of images and clips."""

from __future__ import annotations

from typing import Any

from reducible.architecture import Architecture
from reducible.pretrained import Inputs, features, joined, last, logits, named, pixels, pretrained

HEAD = "ForImageClassification"
VIT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
SMALL = pixels(3, 32, 32)
LARGE = pixels(3, 64, 64)
DEPTH = named("predicted_depth")


def image(name: str, prefix: str, head: str = HEAD, inputs: Inputs = SMALL, **sizes: Any) -> Architecture:
    return pretrained(name, "vision", prefix, head, inputs, last if head == "Model" else logits, **sizes)


SWIN: dict[str, Any] = {
    "image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4],
    "window_size": 4,
}  # fmt: skip
STAGES: dict[str, Any] = {"hidden_sizes": [16, 32], "depths": [1, 1], "embedding_size": 16}

TRANSFORMERS = (
    image("vit", "ViT", **VIT),
    image("vit_bare", "ViT", "Model", **VIT),
    image("deit", "DeiT", **VIT),
    image("beit", "Beit", **VIT, use_relative_position_bias=True),
    image("beit_absolute", "Beit", **VIT, use_absolute_position_embeddings=True),
    image("data2vec_vision", "Data2VecVision", **VIT, use_relative_position_bias=True),
    image("swin", "Swin", **SWIN),
    image("swin_bare", "Swin", "Model", **SWIN),
    image("swinv2", "Swinv2", **SWIN),
    image("donut_swin", "DonutSwin", **SWIN),
    image(
        "focalnet", "FocalNet", inputs=SMALL, image_size=32, patch_size=4, embed_dim=16, depths=[1, 1],
        hidden_sizes=[16, 32], focal_levels=[2, 2], focal_windows=[3, 3],
    ),
    image(
        "pvt", "Pvt", inputs=LARGE, image_size=64, depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 32, 32],
        num_attention_heads=[1, 2, 4, 4], sequence_reduction_ratios=[8, 4, 2, 1], mlp_ratios=[2, 2, 2, 2],
    ),
    image(
        "pvt_v2", "PvtV2", inputs=LARGE, image_size=64, depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 32, 32],
        num_attention_heads=[1, 2, 4, 4], sr_ratios=[8, 4, 2, 1], mlp_ratios=[2, 2, 2, 2],
    ),
    image(
        "segformer", "Segformer", inputs=LARGE, depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 32, 32],
        num_attention_heads=[1, 2, 4, 4], decoder_hidden_size=32,
    ),
    image(
        "segformer_segmentation", "Segformer", "ForSemanticSegmentation", inputs=LARGE, depths=[1, 1, 1, 1],
        hidden_sizes=[8, 16, 32, 32], num_attention_heads=[1, 2, 4, 4], decoder_hidden_size=32,
    ),
    image(
        "cvt", "Cvt", inputs=SMALL, embed_dim=[16, 16, 32], num_heads=[2, 2, 4], depth=[1, 2, 3],
        patch_sizes=[7, 3, 3], patch_stride=[4, 2, 2], mlp_ratio=[2.0, 2.0, 2.0],
    ),
    image(
        "levit", "Levit", inputs=LARGE, image_size=64, hidden_sizes=[16, 32, 48], num_attention_heads=[2, 4,
        6],
        depths=[1, 1, 1], key_dim=[8, 8, 8],
    ),
    image("dinov2", "Dinov2", **{**VIT, "mlp_ratio": 2}),
    image("dinov2_swiglu", "Dinov2", **VIT, use_swiglu_ffn=True),
    image("dinov2_registers", "Dinov2WithRegisters", **VIT, num_register_tokens=2),
    image("dinov3_vit", "DINOv3ViT", "Model", **VIT),
    image("ijepa", "IJepa", **VIT),
    image("vit_msn", "ViTMSN", **VIT),
    pretrained(
        "vit_mae", "vision", "ViTMAE", "Model", joined(SMALL, features(16, name="noise")), last, **VIT,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=1, decoder_num_attention_heads=4, decoder_intermediate_size=64,
        mask_ratio=0.0,
    ),
    image(
        "hiera", "Hiera", inputs=LARGE, image_size=[64, 64], patch_stride=[4, 4], embed_dim=16,
        depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8], masked_unit_size=[8, 8], query_stride=[2, 2],
        mlp_ratio=2.0,
    ),
    image(
        "mobilevit", "MobileViT", inputs=LARGE, image_size=64, hidden_sizes=[16, 24, 32],
        neck_hidden_sizes=[8, 8, 16, 16, 24, 32, 64], num_attention_heads=4, mlp_ratio=2.0,
    ),
    image("mobilevitv2", "MobileViTV2", inputs=LARGE, image_size=64, width_multiplier=0.25),
    image(
        "poolformer", "PoolFormer", inputs=LARGE, depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 32, 32],
        mlp_ratio=2.0,
    ),
    image(
        "swiftformer", "SwiftFormer", inputs=LARGE, image_size=64, depths=[1, 1, 1, 1], embed_dims=[8, 16,
        24, 32],
        mlp_ratio=2,
    ),
    image("vitdet", "VitDet", "Model", **{**VIT, "mlp_ratio": 2, "window_size": 2,
          "window_block_indices": [0], "use_relative_position_embeddings": True}),
    image("yolos", "Yolos", "ForObjectDetection", **{**VIT, "image_size": [32, 32]}, num_detection_tokens=4,
          use_mid_position_embeddings=False),
    image(
        "dpt", "DPT", "ForSemanticSegmentation", **{**VIT, "num_hidden_layers": 4},
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=16,
        readout_type="project", is_hybrid=False,
    ),
    pretrained(
        "videomae", "vision", "VideoMAE", "ForVideoClassification", pixels(4, 3, 32, 32), logits, **VIT,
        num_frames=4, tubelet_size=2,
    ),
    pretrained(
        "timesformer", "vision", "Timesformer", "ForVideoClassification", pixels(4, 3, 32, 32), logits, **VIT,
        num_frames=4,
    ),
    pretrained(
        "vivit", "vision", "Vivit", "ForVideoClassification", pixels(4, 3, 32, 32), logits,
        **{**VIT, "patch_size": None, "tubelet_size": [2, 8, 8]}, num_frames=4,
    ),
    pretrained(
        "siglip_vision", "vision", "SiglipVision", "Model", SMALL, named("pooler_output"), **VIT,
    ),
    pretrained("clip_vision", "vision", "CLIPVision", "Model", SMALL, named("pooler_output"), **VIT),
    pretrained(
        "glpn", "vision", "GLPN", "ForDepthEstimation", LARGE, DEPTH, depths=[1, 1, 1, 1], hidden_sizes=[8,
        16, 32, 32],
        num_attention_heads=[1, 2, 4, 4], decoder_hidden_size=16, mlp_ratios=[2, 2, 2, 2],
    ),
    pretrained(
        "swin2sr", "vision", "Swin2SR", "ForImageSuperResolution", pixels(3, 16, 16),
        named("reconstruction"), image_size=16, patch_size=1,
        embed_dim=16, depths=[2], num_heads=[2], window_size=4, upscale=2,
    ),
)  # fmt: skip

CONVOLUTIONAL = (
    image("convnext", "ConvNext", inputs=LARGE, depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32]),
    image("convnextv2", "ConvNextV2", inputs=LARGE, depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32]),
    image("dinov3_convnext", "DINOv3ConvNext", "Model", inputs=LARGE, depths=[1, 1, 1, 1],
          hidden_sizes=[8, 16, 24, 32]),
    image("resnet", "ResNet", inputs=LARGE, **STAGES),
    image("regnet", "RegNet", inputs=LARGE, **STAGES, groups_width=8),
    image("bit", "Bit", inputs=LARGE, **{**STAGES, "hidden_sizes": [32, 64]}, num_groups=4),
    image("mobilenet_v1", "MobileNetV1", inputs=LARGE, depth_multiplier=0.25),
    image("mobilenet_v2", "MobileNetV2", inputs=LARGE, depth_multiplier=0.35),
    image("efficientnet", "EfficientNet", inputs=LARGE, width_coefficient=0.25, depth_coefficient=0.3,
        hidden_dim=320),
    image("hgnet_v2", "HGNetV2", inputs=LARGE, stem_channels=[3, 8, 16], stage_in_channels=[16, 16, 32, 32],
          stage_mid_channels=[8, 8, 16, 16], stage_out_channels=[16, 32, 32, 64], stage_num_blocks=[1, 1, 1,
          1],
          hidden_sizes=[16, 32, 32, 64], depths=[1, 1, 1, 1], embedding_size=16),
    image("textnet", "TextNet", inputs=LARGE, stem_out_channels=16, hidden_sizes=[16, 16, 32, 32, 64]),
)  # fmt: skip

DETR: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "num_queries": 5,
    "num_labels": 3,
}
BACKBONE = {
    "model_type": "resnet",
    "hidden_sizes": [16, 32],
    "depths": [1, 1],
    "embedding_size": 16,
    "out_features": ["stage1", "stage2"],
}
BOXES = named("logits", "pred_boxes")

DETECTORS = tuple(
    pretrained(
        name, "detection", prefix, "ForObjectDetection", LARGE, BOXES, **{**DETR, **more},
        backbone_config=BACKBONE,
    )
    for name, prefix, more in (
        ("detr", "Detr", {}),
        ("conditional_detr", "ConditionalDetr", {}),
        ("table_transformer", "TableTransformer", {}),
        ("deformable_detr", "DeformableDetr", {"num_feature_levels": 2, "decoder_layers": 2}),
    )
)  # fmt: skip

ARCHITECTURES = (*TRANSFORMERS, *CONVOLUTIONAL, *DETECTORS)
