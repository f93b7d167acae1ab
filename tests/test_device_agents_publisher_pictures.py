"""Pictures as messages: never above the cap, as large as fits, and honest about it."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from device_agents.publisher.pictures import picture_message
from edge.messages import Picture, decode
from edge.topics import StationId

STATION = StationId("north", "milling", "l1", "s1")


def empty(shows) -> Picture:
    return Picture(station=STATION, inspection_id="e-1", shows=shows, request_id="r1")


def message_of(shows, values, most_bytes) -> Picture:
    payload = picture_message(empty(shows), values, most_bytes)
    picture = decode(payload, Picture)
    assert (picture.inspection_id, picture.shows, picture.request_id) == ("e-1", shows, "r1")
    if picture.data:
        assert len(payload) <= most_bytes
        opened = Image.open(io.BytesIO(picture.data))
        assert opened.size == (picture.width, picture.height)
        assert Image.MIME[opened.format] == picture.media_type
    return picture


def noise(height, width):
    """The worst case for any encoder."""
    return np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_picture_that_fits_goes_as_it_is():
    flat = np.full((96, 128, 3), (200, 30, 30), np.uint8)
    picture = message_of("image", flat, 1 << 20)
    assert (picture.width, picture.height, picture.reason) == (128, 96, "")
    shown = np.asarray(Image.open(io.BytesIO(picture.data)))
    assert np.abs(shown.astype(int) - flat).max() < 10, "RGB, not BGR"


def test_picture_over_the_cap_is_made_smaller_and_says_so():
    picture = message_of("image", noise(960, 1280), 64 << 10)
    assert picture.data
    assert picture.reason.startswith("made smaller to fit 65536 bytes: 1280x960 as ")
    assert picture.width < 1280
    assert picture.width / picture.height == pytest.approx(1280 / 960, rel=0.02)


@pytest.mark.parametrize("most_bytes", [1024, 300])
def test_cap_that_no_picture_fits_is_answered_without_one(most_bytes):
    picture = message_of("image", noise(960, 1280), most_bytes)
    assert not picture.data
    assert picture.reason == f"it does not fit {most_bytes} bytes"


def test_heat_map_comes_as_grey_levels_that_can_be_read_back():
    heat = np.linspace(0, 1, 64 * 48, dtype=np.float32).reshape(48, 64)
    picture = message_of("heat_map", heat, 1 << 20)
    assert picture.media_type == "image/png"
    levels = np.asarray(Image.open(io.BytesIO(picture.data)))
    np.testing.assert_allclose(levels / 255.0, heat, atol=0.003)


def test_heat_map_that_is_not_finite_does_no_harm():
    heat = np.array([[np.nan, np.inf], [-np.inf, 7.0]], np.float32)
    picture = message_of("heat_map", heat, 1 << 20)
    levels = np.asarray(Image.open(io.BytesIO(picture.data)))
    assert levels.tolist() == [[0, 255], [0, 255]]


def test_nothing_kept_is_said_and_not_left_open():
    picture = message_of("heat_map", None, 1 << 20)
    assert (picture.data, picture.media_type) == (b"", "")
    assert picture.reason == "no heat_map was kept"


@given(st.integers(1, 300), st.integers(1, 300), st.integers(400, 20_000))
@settings(max_examples=40, deadline=None)
def test_no_message_with_a_picture_is_above_the_cap(height, width, most_bytes):
    message_of("image", noise(height, width), most_bytes)
    message_of("heat_map", noise(height, width)[..., 0].astype(np.float32) / 255, most_bytes)
