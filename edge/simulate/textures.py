"""The finishes of simulated parts: photographs that ship inside scikit-image's wheel.

Only files of the wheel are read (`skimage/data/*.png`), so nothing is downloaded, and scikit-image
itself is never imported.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from edge.errors import MachineError


@dataclass(frozen=True)
class Sound:
    """How hard a material is to work: levels of the two channels."""

    vibration_g: float  # scales the spindle's vibration
    current_a: float  # mean motor current


@dataclass(frozen=True)
class Finish:
    """A surface, and how a part with it normally sounds while it is worked.

    The link between the two is what a `mismatch` breaks: each half alone stays usual.
    """

    name: str
    texture_file: str
    share: float  # of the parts
    colour: tuple[float, float, float]  # mean RGB, 0..255
    contrast: float  # standard deviation of the texture, as a share of the colour
    sound: Sound


SOFT, HARD = Sound(vibration_g=0.30, current_a=2.4), Sound(vibration_g=0.75, current_a=3.6)
# Half of the parts are soft and half are hard, so that swapping the two sounds leaves each
# modality's own mixture as it was.
FINISHES = (
    Finish("brushed", "grass.png", 0.25, (156.0, 158.0, 154.0), 0.09, SOFT),
    Finish("ribbed", "brick.png", 0.25, (142.0, 122.0, 106.0), 0.08, SOFT),
    Finish("cast", "gravel.png", 0.50, (112.0, 115.0, 122.0), 0.13, HARD),
)


def textures() -> dict[str, Image.Image]:
    """Return each finish's texture, grey [512, 512], its tones spread over the whole range."""
    folder = _texture_folder()
    loaded = {}
    for finish in FINISHES:
        with Image.open(folder / finish.texture_file) as picture:
            loaded[finish.name] = ImageOps.equalize(picture.convert("L"))
    return loaded


def _texture_folder() -> Path:
    found = importlib.util.find_spec("skimage")
    for location in (found.submodule_search_locations or ()) if found else ():
        folder = Path(location, "data")
        if all((folder / finish.texture_file).is_file() for finish in FINISHES):
            return folder
    raise MachineError(
        where="edge simulate",
        expected="scikit-image, whose wheel brings the textures",
        found="none" if found is None else "one without its pictures",
        do="Install it with `pip install scikit-image` (it is part of orin-inspect[host]).",
    )
