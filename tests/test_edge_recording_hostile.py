"""Bytes that nobody meant as a picture or as readings: read, or refused in words, and no more."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from edge.errors import InputError
from edge.recording.format import read_pixels, read_readings
from edge.sample import Channel

# Pillow warns of what it finds in a damaged TIFF, and goes on to read it or to refuse it.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")
CHANNELS = (Channel("drive_end", "g", 12000.0), Channel("fan_end", "g", 12000.0))
FRESH = settings(
    max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)


def picture(form: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form)
    return out.getvalue()


def readings_file(form: str) -> bytes:
    values = np.random.default_rng(0).normal(size=(2, 16)).astype(np.float32)
    if form == "csv":
        rows = "\n".join(f"{a},{b}" for a, b in values.T)
        return f"drive_end,fan_end\n{rows}\n".encode()
    out = io.BytesIO()
    np.save(out, values)
    return out.getvalue()


def read(path: Path, content: bytes) -> np.ndarray | str:
    """Read a file with this content: what is in it, or the words that refuse it."""
    path.write_bytes(content)
    is_picture = path.suffix not in (".npy", ".csv")
    try:
        found = read_pixels(path) if is_picture else read_readings(path, CHANNELS)
    except InputError as error:
        refusal = error
    else:
        if is_picture:
            assert found.dtype == np.uint8
            assert found.shape[2:] == (3,)
        else:
            assert found.dtype == np.float32
            assert found.shape[:1] == (len(CHANNELS),)
            assert found.ndim == 2
        return found
    assert str(path) in str(refusal)
    assert refusal.do
    return str(refusal)


def damaged(data, whole: bytes) -> bytes:
    """Some bytes changed, then perhaps cut short."""
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    return bytes(content[: data.draw(st.integers(0, len(content)))])


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "TIFF", "WEBP"])
def test_the_pictures_that_the_others_are_made_from_are_right(tmp_path, form):
    assert not isinstance(read(tmp_path / f"whole.{form.lower()}", picture(form)), str)


@pytest.mark.parametrize("form", ["npy", "csv"])
def test_the_readings_that_the_others_are_made_from_are_right(tmp_path, form):
    assert not isinstance(read(tmp_path / f"whole.{form}", readings_file(form)), str)


@FRESH
@given(st.binary(max_size=200), st.sampled_from(["png", "jpg", "bmp", "tif", "npy", "csv"]))
@example(b"", "png")
def test_any_bytes_are_refused_or_read(tmp_path, content, suffix):
    read(tmp_path / f"any.{suffix}", content)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "TIFF", "WEBP"])
@FRESH
@given(data=st.data())
def test_a_damaged_picture_is_refused_or_read(tmp_path, form, data):
    read(tmp_path / f"damaged.{form.lower()}", damaged(data, picture(form)))


@pytest.mark.parametrize("form", ["npy", "csv"])
@FRESH
@given(data=st.data())
def test_damaged_readings_are_refused_or_read(tmp_path, form, data):
    read(tmp_path / f"damaged.{form}", damaged(data, readings_file(form)))
