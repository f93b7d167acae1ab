"""A model in the Hugging Face format, opened from a folder or by its name on the hub.

Only the vision tower is loaded of a model that reads text too. Code that comes with a model is
never run, pickled weights are read by torch's restricted unpickler, and weights that the folder
lacks are an error: transformers itself would fill them with noise and only print a table.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.teachers.lite_backbone import LITE2
from edge.artefact import digest_of_bytes, digest_of_file
from edge.errors import InputError, MachineError

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_CONFIG = "config.json"
_PREPROCESSING = ("preprocessor_config.json", "processor_config.json")
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_AS_THEY_ARE = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
# What each family was trained with, where no preprocessing lies beside the model.
_PIXELS = {
    "clip_vision_model": _CLIP,
    "metaclip_2_vision_model": _CLIP,
    "siglip_vision_model": _HALF,
    "siglip2_vision_model": _HALF,
    "vit": _HALF,
    "radio": _AS_THEY_ARE,  # the model standardises them itself
}
_VISION_TOWERS = {
    "clip": "CLIPVisionModel",
    "metaclip_2": "MetaClip2VisionModel",
    "siglip": "SiglipVisionModel",
    "siglip2": "Siglip2VisionModel",
}
# Left out of some checkpoints, and not looked at: see `HuggingFaceBackbone`.
_MAY_LACK = re.compile(r"^pooler\.|layer_scale\d+\.lambda1$|mask_token$")
_FAMILIES = "DINOv2, DINOv3, SigLIP, SigLIP 2, CLIP, ViT, ViT-MAE, C-RADIO, ConvNeXt"


@dataclass(frozen=True)
class Opened:
    """A frozen model with what belongs to it."""

    model: nn.Module
    config: Any
    mean_3: Tensor  # of pixels in 0..1
    deviation_3: Tensor
    digest: str  # of its configuration and weights


def open_model(name: str) -> Opened:
    """Open the vision model in the folder `name`, or of that name on the hub. InputError."""
    transformers = _transformers()
    path = Path(name).expanduser()
    with _quiet(transformers):
        folder = path if _is_path(name, path) else _fetched_config(transformers, name).parent
        config = _config_in(transformers, folder, name)
        source = folder if folder == path else name
        model = _loaded(transformers, source, config, name)
    model.eval().requires_grad_(False)
    mean_3, deviation_3 = _pixel_statistics(folder, model.config)
    return Opened(model.float(), model.config, mean_3, deviation_3, _digest(folder))


def _transformers() -> Any:
    try:
        import transformers  # noqa: PLC0415 (seconds to import, rarely wanted)
    except ImportError:
        raise MachineError(
            where="teacher.backbones",
            expected="the package transformers",
            found="no such package",
            do="Install the training side: pip install 'orin-inspect[host]'.",
        ) from None
    return transformers


def _is_path(name: str, path: Path) -> bool:
    """Tell a folder from a name on the hub; what is neither is refused."""
    if path.is_dir():
        if not (path / _CONFIG).is_file():
            raise _not_a_model(path, "a folder without config.json", "Name the model's own folder.")
        return True
    if path.exists() or not _HUB_NAME.fullmatch(name) or name.startswith("."):
        found = "a file" if path.exists() else "no such folder"
        raise _not_a_model(f"'{name}'", found, "Check the path.")
    return False


def _fetched_config(transformers: Any, name: str) -> Path:
    try:
        return Path(transformers.utils.hub.cached_file(name, _CONFIG))
    except (OSError, ValueError) as error:
        raise _not_a_model(
            f"'{name}'",
            f"no such folder here, and the hub does not give it: {_first_line(error)}",
            f"Check the spelling, or fetch it where there is a network (hf download {name} "
            "--local-dir FOLDER) and name the folder.",
        ) from None


def _config_in(transformers: Any, folder: Path, name: str) -> Any:
    """Read the configuration, with the changes that looking asks for."""
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        raise _unreadable_config(transformers, folder, name, error) from error
    if config.model_type == "vit_mae":
        config.mask_ratio = 0.0  # nothing is hidden from a teacher
    return config


def _unreadable_config(transformers: Any, folder: Path, name: str, error: Exception) -> InputError:
    try:
        settings = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        settings = {}
    settings = settings if isinstance(settings, dict) else {}
    if "auto_map" in settings:
        return _not_a_model(
            name,
            "a model that needs Python code of its own (auto_map in config.json), which is not run",
            "Use a version of it that transformers has a class for (C-RADIOv4 with "
            f"model_type 'radio', for one); {transformers.__version__} is installed here.",
        )
    kind = settings.get("model_type")
    if isinstance(kind, str) and kind not in transformers.CONFIG_MAPPING:
        return _not_a_model(
            name,
            f"model_type '{kind}', which transformers {transformers.__version__} does not know",
            "Use a newer transformers, or another model.",
        )
    return _not_a_model(name, _first_line(error), "Download it again.")


def _loaded(transformers: Any, source: Path | str, config: Any, name: str) -> nn.Module:
    """Load the weights, all of them, into the class that looks at images."""
    kind = _class_for(transformers, config, name)
    tower = getattr(config, "vision_config", None)
    if config.model_type in _VISION_TOWERS and tower is not None:
        config = tower
    try:
        model, told = kind.from_pretrained(
            source,
            config=config,
            local_files_only=isinstance(source, Path),
            trust_remote_code=False,
            weights_only=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise _unreadable_weights(name, error) from error
    missing = sorted(key for key in told["missing_keys"] if not _MAY_LACK.search(key))
    if missing:
        raise InputError(
            where=name,
            expected="weights for every layer that config.json describes",
            found=f"none for {len(missing)} tensors ({', '.join(missing[:3])}, ...)",
            do="The weights are of another model or not whole; download the folder again.",
        )
    weights: nn.Module = model
    return weights


def _class_for(transformers: Any, config: Any, name: str) -> Any:
    tower = _VISION_TOWERS.get(config.model_type)
    if tower is not None:
        return getattr(transformers, tower)
    try:
        kind = transformers.MODEL_MAPPING[type(config)]
    except KeyError:
        kind = None
    if kind is None or kind.main_input_name != "pixel_values":
        raise _not_a_model(
            name,
            f"model_type '{config.model_type}', which does not look at images",
            "Use a vision model.",
        )
    return kind


def _unreadable_weights(name: str, error: Exception) -> InputError:
    """Say in a person's words why the weights did not load."""
    text = str(error)
    if "Weights only load failed" in text:
        found = "pickled weights (.bin) that hold more than tensors, or are cut short"
        do = "They could run code; use the model's .safetensors instead, or download them again."
    elif "ignore_mismatched_sizes" in text or "size mismatch" in text:
        found = "tensors of another shape than config.json describes"
        do = "The weights are of another model; download the folder again."
    else:
        found = _first_line(error)
        do = "A file is missing or cut short: download the folder again (hf download)."
    return InputError(
        where=name, expected="the model's weights, whole (.safetensors)", found=found, do=do
    )


def _pixel_statistics(folder: Path, config: Any) -> tuple[Tensor, Tensor]:
    """Return mean and deviation [3] of the model's own preprocessing, else its family's."""
    for path in (folder / name for name in _PREPROCESSING):
        if not path.is_file():
            continue
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
            settings = settings.get("image_processor", settings)
            if settings.get("do_normalize", True) is False:
                return _two(_AS_THEY_ARE)
            if "image_mean" in settings and config.model_type != "radio":
                return _two((settings["image_mean"], settings["image_std"]))
        except (ValueError, KeyError, AttributeError, TypeError, RuntimeError) as error:
            raise InputError(
                where=path,
                expected="image_mean and image_std, three numbers each",
                found=_first_line(error) or type(error).__name__,
                do="Download the file again.",
            ) from None
    return _two(_PIXELS.get(config.model_type, _IMAGENET))


def _two(statistics: Any) -> tuple[Tensor, Tensor]:
    mean, deviation = (torch.tensor(values, dtype=torch.float32) for values in statistics)
    if mean.shape != (3,) or deviation.shape != (3,) or not (deviation > 0).all():
        raise ValueError(f"mean {mean.tolist()}, deviation {deviation.tolist()}")
    return mean, deviation


def _digest(folder: Path) -> str:
    """Name configuration, preprocessing and weights (64 hexadecimal digits)."""
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    files = [folder / _CONFIG, *(folder / name for name in _PREPROCESSING), *weights]
    named = [f"{path.name} {digest_of_file(path)}" for path in files if path.is_file()]
    return digest_of_bytes("\n".join(named).encode())


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep bars and tables, and the warnings of what is imported meanwhile, from a person's eyes.

    What matters of them is raised.
    """
    log = transformers.utils.logging
    before, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    disabled = logging.root.manager.disable
    log.set_verbosity_error()
    log.disable_progress_bar()
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)
        log.set_verbosity(before)
        if bars:
            log.enable_progress_bar()


def _not_a_model(where: object, found: str, do: str) -> InputError:
    return InputError(
        where=f"teacher.backbones: {where}",
        expected=f"'{LITE2}', or a vision model by folder or hub name ({_FAMILIES})",
        found=found,
        do=do,
    )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
