"""The textures ship inside a package; without it the person hears what to install."""

import importlib.util
import sys

import pytest

from edge.errors import MachineError
from edge.simulate.textures import FINISHES, textures


def test_every_finish_has_a_texture_without_importing_scikit_image(monkeypatch):
    monkeypatch.delitem(sys.modules, "skimage", raising=False)
    loaded = textures()
    assert set(loaded) == {finish.name for finish in FINISHES}
    assert all(picture.size == (512, 512) for picture in loaded.values())
    assert "skimage" not in sys.modules


def test_without_the_package_the_error_names_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match="pip install scikit-image"):
        textures()


def test_the_shares_of_soft_and_hard_parts_are_even():
    assert sum(finish.share for finish in FINISHES) == 1.0
    sounds = {finish.sound for finish in FINISHES}
    for sound in sounds:
        assert sum(f.share for f in FINISHES if f.sound == sound) == 1 / len(sounds)
