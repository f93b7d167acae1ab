"""Small real vision models of each family, made from their configuration and saved to a folder."""

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    ConvNextConfig,
    ConvNextModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ConvNextConfig,
    DINOv3ConvNextModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    PreTrainedModel,
    RadioConfig,
    RadioModel,
    ResNetConfig,
    ResNetModel,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTModel,
)

WIDTH = 32
SHAPE = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 99,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LEVELS = [8, 16, 24, 40]


def vit() -> PreTrainedModel:
    return ViTModel(ViTConfig(**SHAPE, image_size=64, patch_size=16))


def vit_of_a_classifier() -> PreTrainedModel:
    return ViTForImageClassification(ViTConfig(**SHAPE, image_size=64, patch_size=16))


def dinov2() -> PreTrainedModel:
    return Dinov2Model(Dinov2Config(**_mlp_by_ratio(), image_size=56, patch_size=14))


def dinov2_with_registers() -> PreTrainedModel:
    shape = Dinov2WithRegistersConfig(
        **_mlp_by_ratio(), image_size=56, patch_size=14, num_register_tokens=4
    )
    return Dinov2WithRegistersModel(shape)


def dinov3() -> PreTrainedModel:
    return DINOv3ViTModel(DINOv3ViTConfig(**SHAPE, patch_size=16, num_register_tokens=4))


def dinov3_convnext() -> PreTrainedModel:
    return DINOv3ConvNextModel(DINOv3ConvNextConfig(hidden_sizes=LEVELS, depths=[1, 1, 1, 1]))


def siglip() -> PreTrainedModel:
    vision = {**SHAPE, "image_size": 64, "patch_size": 16}
    return SiglipModel(SiglipConfig(vision_config=vision, text_config=TEXT))


def siglip2() -> PreTrainedModel:
    vision = {**SHAPE, "num_patches": 16, "patch_size": 16}
    return Siglip2Model(Siglip2Config(vision_config=vision, text_config=TEXT))


def clip() -> PreTrainedModel:
    vision = {**SHAPE, "image_size": 64, "patch_size": 16}
    return CLIPModel(CLIPConfig(vision_config=vision, text_config=TEXT))


def clip_vision() -> PreTrainedModel:
    return CLIPVisionModel(CLIPVisionConfig(**SHAPE, image_size=64, patch_size=16))


def vit_mae() -> PreTrainedModel:
    shape = ViTMAEConfig(
        **SHAPE,
        image_size=64,
        patch_size=16,
        decoder_hidden_size=16,
        decoder_num_attention_heads=2,
        decoder_num_hidden_layers=1,
        decoder_intermediate_size=16,
        mask_ratio=0.75,
    )
    return ViTMAEForPreTraining(shape)


def radio() -> PreTrainedModel:
    shape = {key: value for key, value in SHAPE.items() if key != "intermediate_size"}
    return RadioModel(RadioConfig(**shape, max_img_size=128, num_cls_tokens=3, num_registers=5))


def convnext() -> PreTrainedModel:
    return ConvNextModel(ConvNextConfig(hidden_sizes=LEVELS, depths=[1, 1, 1, 1]))


def resnet() -> PreTrainedModel:
    return ResNetModel(
        ResNetConfig(embedding_size=8, hidden_sizes=LEVELS, depths=[1, 1, 1, 1], layer_type="basic")
    )


def swin() -> PreTrainedModel:
    shape = SwinConfig(image_size=64, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=2)
    return SwinModel(shape)


def bert() -> PreTrainedModel:
    return BertModel(BertConfig(**TEXT))


TRANSFORMERS = (vit, vit_of_a_classifier, dinov2, dinov2_with_registers, dinov3, siglip, siglip2,
                clip, clip_vision, vit_mae, radio)  # fmt: skip
CONVOLUTIONAL = (convnext, dinov3_convnext, resnet)


def saved(make: Callable[[], PreTrainedModel], folder: Path, *, seed: int = 0, **options) -> str:
    """Save a model with random weights; return its folder, as a recipe names it.

    The patch projection is made larger than at the start of training, so that the pixels are heard
    beside the positions, as they are in a trained model.
    """
    torch.manual_seed(seed)
    model = make()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "patch_" in name and "video" not in name:
                weight.mul_(10.0)
    model.save_pretrained(folder, **options)
    return str(folder)


def _mlp_by_ratio() -> dict[str, int]:
    shape = {key: value for key, value in SHAPE.items() if key != "intermediate_size"}
    return {**shape, "mlp_ratio": 2}
