"""Images and videos. Stochastic depth is off: PyTorch draws other numbers for float64, the tests' reference."""

from __future__ import annotations

from typing import Any

from zoo.entry import Build, Entry, family, image, normal
from zoo.sizes import LAYERS, TOWER, VISION


def _vit(name: str, kind: str, **config: Any) -> Entry:
    return Entry(name, family(kind, **{**VISION, **config}), image())


_STAGES: dict[str, Any] = {"hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1], "drop_path_rate": 0.0}
_HEADS: dict[str, Any] = {**_STAGES, "num_attention_heads": [1, 2, 2, 4]}
_SWIN: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 16,
    "depths": [1, 2],
    "num_heads": [2, 4],
    "window_size": 4,
    "drop_path_rate": 0.0,
}
_EFFICIENT: dict[str, Any] = {
    "image_size": 64,
    "width_coefficient": 0.25,
    "depth_coefficient": 0.25,
    "hidden_dim": 320,
    "drop_connect_rate": 0.0,
}
_SAM: dict[str, Any] = {
    **TOWER,
    "mlp_dim": 64,
    "output_channels": 32,
    "image_size": 32,
    "patch_size": 8,
    "window_size": 2,
    "global_attn_indexes": [1],
    "num_pos_feats": 16,
}
_DPT: dict[str, Any] = {
    **VISION,
    "num_hidden_layers": 4,
    "backbone_out_indices": [0, 1, 2, 3],
    "neck_hidden_sizes": [8, 8, 16, 16],
    "fusion_hidden_size": 16,
    "is_hybrid": False,
}
_MAE: dict[str, Any] = {
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 64,
}
_VIDEO: dict[str, Any] = {**TOWER, "image_size": 16, "patch_size": 8, "num_frames": 4}


def _detr() -> Build:
    def build() -> Any:
        from transformers import ResNetConfig

        backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], out_features=["stage2"])
        return family("Detr", backbone_config=backbone, d_model=32, num_queries=6, **LAYERS)()

    return build


ENTRIES = (
    _vit("ViT", "ViT"),
    _vit("DeiT", "DeiT"),
    _vit("BEiT", "Beit", drop_path_rate=0.0),
    _vit("DINOv2", "Dinov2"),
    _vit("DINOv2 (SwiGLU)", "Dinov2", use_swiglu_ffn=True),
    _vit("DINOv2 with registers", "Dinov2WithRegisters"),
    _vit("DINOv3", "DINOv3ViT"),
    _vit("DINOv3 (gated)", "DINOv3ViT", use_gated_mlp=True, hidden_act="silu"),
    _vit("ViT-MSN", "ViTMSN"),
    _vit("I-JEPA", "IJepa"),
    _vit("MAE", "ViTMAE", **_MAE),
    _vit("ViTDet", "VitDet"),
    _vit("YOLOS", "Yolos", image_size=[32, 32], num_detection_tokens=4),
    _vit("Sapiens 2", "Sapiens2"),
    Entry("DINOv3 ConvNeXt", family("DINOv3ConvNext", **_STAGES), image()),
    Entry("Swin", family("Swin", **_SWIN), image()),
    Entry("Swin v2", family("Swinv2", **_SWIN), image()),
    Entry("Swin2SR", family("Swin2SR", **{**_SWIN, "image_size": 16, "patch_size": 1}), image(16)),
    Entry("ConvNeXt", family("ConvNext", **_STAGES), image()),
    Entry("ConvNeXt v2", family("ConvNextV2", **_STAGES), image()),
    Entry("PVT", family("Pvt", **_HEADS, image_size=32), image()),
    Entry("PVT v2", family("PvtV2", **_HEADS, image_size=32), image()),
    Entry("SegFormer", family("Segformer", **_HEADS), image()),
    Entry("GLPN", family("GLPN", **_HEADS), image()),
    Entry("PoolFormer", family("PoolFormer", **_STAGES), image()),
    Entry("SwiftFormer", family("SwiftFormer", embed_dims=[16, 16, 32, 32], depths=[1] * 4, image_size=32), image()),
    Entry("ResNet", family("ResNet", embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1]), image()),
    Entry(
        "RegNet", family("RegNet", embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], groups_width=8), image()
    ),
    Entry("MobileNet v2", family("MobileNetV2", depth_multiplier=0.25), image(64)),
    Entry(
        "MobileViT",
        family(
            "MobileViT",
            image_size=64,
            hidden_sizes=[16, 24, 32],
            neck_hidden_sizes=[8, 8, 8, 16, 16, 16, 32],
            num_attention_heads=4,
        ),
        image(64),
    ),
    Entry(
        "MobileViT v2",
        family(
            "MobileViTV2",
            image_size=64,
            width_multiplier=0.25,
            n_attn_blocks=[1, 1, 1],
            base_attn_unit_dims=[32, 32, 32],
        ),
        image(64),
    ),
    Entry("EfficientNet", family("EfficientNet", **_EFFICIENT), image(64)),
    Entry("ALIGN, vision", family("AlignVision", "AlignVisionModel", **_EFFICIENT), image(64)),
    Entry(
        "LeViT",
        family(
            "Levit",
            image_size=64,
            hidden_sizes=[16, 24, 32],
            num_attention_heads=[2, 2, 4],
            depths=[1, 1, 1],
            key_dim=[8, 8, 8],
            drop_path_rate=0,
        ),
        image(64),
    ),
    Entry(
        "CvT",
        family("Cvt", embed_dim=[8, 16, 32], num_heads=[1, 2, 4], depth=[1, 2, 3], drop_path_rate=[0.0, 0.0, 0.0]),
        image(64),
    ),
    Entry(
        "FocalNet",
        family(
            "FocalNet",
            image_size=32,
            embed_dim=16,
            hidden_sizes=[16, 32],
            depths=[1, 1],
            focal_levels=[2, 2],
            focal_windows=[3, 3],
            drop_path_rate=0.0,
        ),
        image(),
    ),
    Entry(
        "Hiera",
        family(
            "Hiera",
            embed_dim=16,
            image_size=[32, 32],
            depths=[1, 1, 1],
            num_heads=[1, 2, 4],
            num_query_pool=2,
            masked_unit_size=[4, 4],
            drop_path_rate=0.0,
        ),
        image(),
    ),
    Entry("SAM, vision", family("SamVision", "SamVisionModel", **_SAM), image()),
    Entry("DPT", family("DPT", "DPTForDepthEstimation", **_DPT), image()),
    Entry("DETR", _detr(), image(64)),
    Entry("VideoMAE", family("VideoMAE", **_VIDEO, **_MAE), normal(pixel_values=(4, 3, 16, 16))),
    Entry("TimeSformer", family("Timesformer", **_VIDEO), normal(pixel_values=(4, 3, 16, 16))),
    Entry("ViViT", family("Vivit", **_VIDEO, tubelet_size=[2, 8, 8]), normal(pixel_values=(4, 3, 16, 16))),
    Entry(
        "V-JEPA 2",
        family(
            "VJEPA2",
            **TOWER,
            patch_size=8,
            crop_size=16,
            frames_per_clip=4,
            pred_hidden_size=24,
            pred_num_attention_heads=4,
            pred_num_hidden_layers=1,
            pred_num_mask_tokens=2,
        ),
        normal(pixel_values_videos=(4, 3, 16, 16)),
    ),
)
