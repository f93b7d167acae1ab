import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import small_backbones
import torch
from small_backbones import saved
from transformers import ViTConfig, ViTModel

from distill.teachers.named_backbone import backbone_named
from edge.errors import InputError, MachineError


def changed(folder: str, **settings) -> str:
    """Change the configuration of a saved model."""
    path = Path(folder) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return folder


def test_a_folder_that_is_not_a_model_is_refused(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("no model here")
    with pytest.raises(InputError, match=r"a folder without config\.json"):
        backbone_named(str(tmp_path))
    with pytest.raises(InputError, match="a file"):
        backbone_named(str(tmp_path / "notes.txt"))
    with pytest.raises(InputError, match="no such folder"):
        backbone_named(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"no such folder.*efficientnet_lite2|efficientnet_lite2"):
        backbone_named("efficientnet_lite9")


@pytest.mark.parametrize("content", ["{", "[]", "", '"a"', "\x00\x01", "{}"])
def test_a_configuration_that_is_none_is_refused(tmp_path: Path, content: str):
    folder = saved(small_backbones.vit, tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"teacher\.backbones"):
        backbone_named(folder)


def test_settings_of_the_wrong_kind_are_refused(tmp_path: Path):
    folder = saved(small_backbones.vit, tmp_path)
    for settings in ({"patch_size": "x"}, {"hidden_size": 31}, {"num_attention_heads": 0}):
        with pytest.raises(InputError):
            backbone_named(changed(folder, **{"patch_size": 16, "hidden_size": 32, **settings}))


def test_a_family_that_the_installed_transformers_does_not_know_is_named(tmp_path: Path):
    folder = changed(saved(small_backbones.vit, tmp_path), model_type="dinov9_vit")
    with pytest.raises(InputError, match=r"'dinov9_vit', which transformers .* does not know"):
        backbone_named(folder)


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path):
    (tmp_path / "config.json").write_text(
        json.dumps({"auto_map": {"AutoConfig": "hf_model.RADIOConfig"}, "args": {"model": "vit"}})
    )
    mark = tmp_path / "ran"
    (tmp_path / "hf_model.py").write_text(f"open({str(mark)!r}, 'w')")
    with pytest.raises(InputError, match=r"code of its own .*is not run"):
        backbone_named(str(tmp_path))
    assert not mark.exists()


def test_a_text_model_is_refused_before_its_weights_are_read(tmp_path: Path):
    folder = saved(small_backbones.bert, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not read")
    with pytest.raises(InputError, match="'bert', which does not look at images"):
        backbone_named(folder)


@pytest.mark.parametrize("kept", [0, 5, 3000, -100])
def test_weights_that_were_cut_short_are_refused(tmp_path: Path, kept: int):
    folder = saved(small_backbones.vit, tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match="weights, whole"):
        backbone_named(folder)


def test_a_model_without_weights_or_without_some_shards_is_refused(tmp_path: Path):
    folder = saved(small_backbones.vit, tmp_path / "none")
    (tmp_path / "none" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="weights, whole"):
        backbone_named(folder)
    folder = saved(small_backbones.vit, tmp_path / "half", max_shard_size="30KB")
    shards = sorted((tmp_path / "half").glob("*.safetensors"))
    shards[-1].unlink()
    with pytest.raises(InputError, match="weights, whole"):
        backbone_named(folder)
    for shard in shards[:-1]:
        shard.unlink()
    with pytest.raises(InputError, match="weights, whole"):
        backbone_named(folder)


def test_weights_of_another_model_are_refused_and_never_filled_with_noise(tmp_path: Path):
    folder = changed(saved(small_backbones.vit, tmp_path / "deeper"), num_hidden_layers=4)
    with pytest.raises(InputError, match="none for 32 tensors"):
        backbone_named(folder)
    folder = changed(saved(small_backbones.vit, tmp_path / "wider"), hidden_size=64)
    with pytest.raises(InputError, match="another shape than"):
        backbone_named(folder)


def test_weights_that_are_not_numbers_are_refused(tmp_path: Path):
    model = ViTModel(ViTConfig(**small_backbones.SHAPE, image_size=64, patch_size=16))
    with torch.no_grad():
        model.layernorm.weight[3] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="not finite"):
        backbone_named(str(tmp_path))(torch.zeros(1, 64, 64, 3, dtype=torch.uint8), (4, 4))


def test_pickled_weights_are_read_but_never_run(tmp_path: Path):
    folder = saved(small_backbones.vit, tmp_path / "vit")
    images = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)
    expected = backbone_named(folder)(images, (4, 4)).dense_BND
    pickled = tmp_path / "pickled"
    shutil.copytree(tmp_path / "vit", pickled)
    (pickled / "model.safetensors").unlink()
    torch.manual_seed(0)
    model = ViTModel.from_pretrained(folder)
    torch.save(model.state_dict(), pickled / "pytorch_model.bin")
    assert torch.equal(backbone_named(str(pickled))(images, (4, 4)).dense_BND, expected)

    mark = tmp_path / "ran"
    for content in (pickle.dumps({"a": Harm(mark)}), b"\x80\x04"):
        (pickled / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(InputError, match="weights, whole"):
            backbone_named(str(pickled))
    assert not mark.exists()


class Harm:
    """What a hostile pickle does when it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_a_patch_grid_that_does_not_fit_is_refused(tmp_path: Path):
    image = torch.zeros(1, 48, 80, 3, dtype=torch.uint8)

    def oblong():
        return ViTModel(ViTConfig(**small_backbones.SHAPE, image_size=[64, 256], patch_size=16))

    with pytest.raises(InputError, match="square of patches"):
        backbone_named(saved(oblong, tmp_path / "oblong"))
    rotary = changed(saved(small_backbones.dinov3, tmp_path / "rotary"), image_size=[64, 256])
    assert backbone_named(rotary)(image, (3, 5)).dense_BND.shape == (1, 15, small_backbones.WIDTH)
    with pytest.raises(InputError, match="one patch for each of 3 x 5 cells"):
        backbone_named(saved(small_backbones.swin, tmp_path / "swin"))(image, (3, 5))


def test_images_that_no_memory_holds_are_not_called_unfit(tmp_path: Path):
    backbone = backbone_named(saved(small_backbones.vit, tmp_path))
    with pytest.raises(MachineError, match=r"memory on .* to look at 1 images"):
        backbone(torch.zeros(1, 64, 64, 3, dtype=torch.uint8), (100_000, 100_000))


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"image_mean": [0.5]}', '{"image_mean": 1, "image_std": "x"}',
                '{"image_mean": [0, 0, 0], "image_std": [1, 0, 1]}']
)  # fmt: skip
def test_preprocessing_that_is_none_is_refused(tmp_path: Path, content: str):
    folder = saved(small_backbones.vit, tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(InputError, match="image_mean and image_std"):
        backbone_named(folder)


def test_a_hub_name_that_is_not_to_be_had_tells_how_to_fetch_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"hf download facebook/dinov9-small"):
        backbone_named("facebook/dinov9-small")
