"""Tiny transformers image classifiers of many families, for 32x32 pictures and five classes, with weights that say something."""

from collections.abc import Callable

import torch
import transformers as hf
from torch import nn

CLASSES = 5
SIDE = 32
STAGES = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_labels": CLASSES}
TOWER = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": SIDE,
    "patch_size": 16,
}
VIT = {**TOWER, "num_labels": CLASSES}
WINDOWS = {"image_size": SIDE, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2}
PYRAMID = {**STAGES, "image_size": SIDE, "num_attention_heads": [1, 1, 1, 2]}
LEVIT = {
    "image_size": SIDE,
    "hidden_sizes": [16] * 3,
    "num_attention_heads": [2] * 3,
    "depths": [1] * 3,
    "key_dim": [4] * 3,
}
TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 49408,
}
FIVE = {"num_labels": CLASSES}

ONE_HEAD: dict[str, Callable[[], nn.Module]] = {
    "resnet": lambda: hf.ResNetForImageClassification(hf.ResNetConfig(embedding_size=8, layer_type="basic", **STAGES)),
    "vit": lambda: hf.ViTForImageClassification(hf.ViTConfig(**VIT)),
    "vit as wide as its classes": lambda: hf.ViTForImageClassification(hf.ViTConfig(**{**VIT, "num_labels": 16})),
    "convnext": lambda: hf.ConvNextForImageClassification(hf.ConvNextConfig(**STAGES)),
    "convnextv2": lambda: hf.ConvNextV2ForImageClassification(hf.ConvNextV2Config(**STAGES)),
    "swin": lambda: hf.SwinForImageClassification(hf.SwinConfig(**WINDOWS, **FIVE)),
    "swinv2": lambda: hf.Swinv2ForImageClassification(hf.Swinv2Config(**WINDOWS, **FIVE)),
    "mobilenet_v1": lambda: hf.MobileNetV1ForImageClassification(hf.MobileNetV1Config(depth_multiplier=0.1, **FIVE)),
    "mobilenet_v2": lambda: hf.MobileNetV2ForImageClassification(hf.MobileNetV2Config(depth_multiplier=0.1, **FIVE)),
    "efficientnet": lambda: hf.EfficientNetForImageClassification(
        hf.EfficientNetConfig(width_coefficient=0.1, depth_coefficient=0.2, hidden_dim=128, **FIVE)
    ),
    "regnet": lambda: hf.RegNetForImageClassification(hf.RegNetConfig(embedding_size=8, groups_width=4, **STAGES)),
    "levit": lambda: hf.LevitForImageClassification(hf.LevitConfig(**LEVIT, **FIVE)),
    "deit": lambda: hf.DeiTForImageClassification(hf.DeiTConfig(**VIT)),
    "beit": lambda: hf.BeitForImageClassification(hf.BeitConfig(**VIT, use_mean_pooling=True)),
    "data2vec": lambda: hf.Data2VecVisionForImageClassification(hf.Data2VecVisionConfig(**VIT)),
    "dinov2, token and mean concatenated": lambda: hf.Dinov2ForImageClassification(hf.Dinov2Config(**VIT)),
    "bit": lambda: hf.BitForImageClassification(hf.BitConfig(embedding_size=8, num_groups=1, **STAGES)),
    "cvt": lambda: hf.CvtForImageClassification(
        hf.CvtConfig(embed_dim=[8, 8, 16], num_heads=[1, 1, 2], depth=[1, 2, 3], cls_token=[False, False, True], **FIVE)
    ),
    "poolformer": lambda: hf.PoolFormerForImageClassification(hf.PoolFormerConfig(**STAGES)),
    "focalnet": lambda: hf.FocalNetForImageClassification(
        hf.FocalNetConfig(
            image_size=SIDE, embed_dim=8, hidden_sizes=[8, 16], depths=[1, 1], focal_levels=[1, 1], focal_windows=[3, 3], **FIVE
        )
    ),
    "pvt": lambda: hf.PvtForImageClassification(hf.PvtConfig(**PYRAMID)),
    "segformer": lambda: hf.SegformerForImageClassification(
        hf.SegformerConfig(**STAGES, num_attention_heads=[1, 1, 1, 2])
    ),
    "vit_msn": lambda: hf.ViTMSNForImageClassification(hf.ViTMSNConfig(**VIT)),
    "clip": lambda: hf.CLIPForImageClassification(hf.CLIPConfig(vision_config=TOWER, text_config=TEXT, **FIVE)),
    "siglip": lambda: hf.SiglipForImageClassification(hf.SiglipConfig(vision_config=TOWER, text_config=TEXT, **FIVE)),
    "perceiver": lambda: hf.PerceiverForImageClassificationConvProcessing(
        hf.PerceiverConfig(
            num_latents=4, d_latents=16, num_self_attends_per_block=1, num_blocks=1, num_self_attention_heads=2,
            num_cross_attention_heads=1, **FIVE,
        )
    ),
}  # fmt: skip

SEVERAL_HEADS: dict[str, Callable[[], nn.Module]] = {
    "levit with teacher": lambda: hf.LevitForImageClassificationWithTeacher(hf.LevitConfig(**LEVIT, **FIVE)),
    "deit with teacher": lambda: hf.DeiTForImageClassificationWithTeacher(hf.DeiTConfig(**VIT)),
    "swiftformer": lambda: hf.SwiftFormerForImageClassification(
        hf.SwiftFormerConfig(depths=[1, 1, 1, 1], embed_dims=[8, 8, 8, 16], **FIVE)
    ),
}


def build(make: Callable[[], nn.Module]) -> nn.Module:
    """The model with heads away from zero: transformers draws them so small that several heads would pass for one."""
    torch.manual_seed(0)
    model = make()
    for parameter in model.parameters():
        if parameter.dim() < 3:
            nn.init.normal_(parameter, 0.0 if parameter.dim() == 2 else 0.5, 0.3)
    return model.eval()
