"""The stream that frames and readings come in: real ones, broken ones, and hostile ones."""

import io
import subprocess

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from live_pipelines import needs_gstreamer

from device_agents.streams.matroska import BrokenStream, MatroskaStream

SCALE = b"\x15\x49\xa9\x66\x87" + b"\x2a\xd7\xb1\x83\x00\x27\x10"  # stamps in steps of 10 us
VIDEO = b"\xe0\x86" + b"\xb0\x81\x02" + b"\xba\x81\x03"
TRACK = b"\xae\x98" + b"\x86\x8eV_UNCOMPRESSED" + VIDEO
HEAD = b"\x1a\x45\xdf\xa3\x80" + b"\x18\x53\x80\x67\xff" + SCALE + b"\x16\x54\xae\x6b\x9a" + TRACK
CLUSTER = b"\x1f\x43\xb6\x75\xff" + b"\xe7\x81\x64"


def simple_block(pixels, time=5, flags=0x80):
    body = b"\x81" + time.to_bytes(2, "big", signed=True) + bytes((flags,)) + pixels
    return b"\xa3" + bytes((0x80 | len(body),)) + body


def read_all(content):
    """Read a stream to its end; returns its track and (time, bytes) of each block."""
    stream = MatroskaStream(io.BytesIO(content))
    track, blocks = stream.track(), []
    while True:
        try:
            stream_ns, size = stream.next_block()
            memory = bytearray(size)
            stream.read_into(memoryview(memory))
            blocks.append((stream_ns, bytes(memory)))
        except EOFError:
            return track, blocks


def test_track_and_blocks_are_read_with_their_times():
    content = HEAD + CLUSTER + simple_block(b"pixels") + simple_block(b"others", time=-1)
    track, blocks = read_all(content)
    assert (track.codec, track.width, track.height) == ("V_UNCOMPRESSED", 2, 3)
    assert blocks == [(1_050_000, b"pixels"), (990_000, b"others")]


def test_block_group_and_elements_that_nobody_needs_are_read_through():
    block = simple_block(b"pixels")
    group = b"\xa0" + bytes((0x80 | len(block),)) + b"\xa1" + block[1:]
    void = b"\xec\x83abc"
    assert read_all(HEAD + void + CLUSTER + void + group + void)[1] == [(1_050_000, b"pixels")]


def test_stream_cut_inside_a_block_ends_before_it():
    content = HEAD + CLUSTER + simple_block(b"pixels") + simple_block(b"others")[:-2]
    assert [pixels for _, pixels in read_all(content)[1]] == [b"pixels"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"not a stream", "no Matroska header"),
        (HEAD[:5] + b"\x01", "where an element's name begins"),
        (HEAD[:5] + b"\xec\x00", "more than eight bytes"),
        (HEAD[:5] + b"\xec\x01\xff\xff\xff\xff\xff\xff\xff", "an element of 7"),
        (HEAD[:10] + CLUSTER + simple_block(b"pixels"), "before the description"),
        (HEAD[:10] + b"\x16\x54\xae\x6b\xb4" + TRACK + TRACK, "2 tracks"),
        (HEAD[:10] + b"\x16\x54\xae\x6b\x80", "0 tracks"),
        (HEAD[:10] + b"\x16\x54\xae\x6b\x82\xae\x98", "longer than the one it lies in"),
        (HEAD + CLUSTER + simple_block(b""), "a block of 4 bytes"),
        (HEAD + CLUSTER + b"\xa3\x08\x7f\xff\xff\xff\xff", "a block of 2147483647 bytes"),
        (HEAD + CLUSTER + simple_block(b"pixels", flags=0x86), "laced"),
    ],
)
def test_what_is_no_such_stream_is_refused_by_name(content, words):
    with pytest.raises(BrokenStream, match=words):
        read_all(content)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
@example(b"\x1a\x45\xdf\xa3\x80")
def test_any_bytes_end_or_are_refused(content):
    for whole in (content, HEAD + content, HEAD + CLUSTER + content):
        try:
            read_all(whole)
        except (EOFError, BrokenStream):
            continue


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_flipped_byte_ends_or_is_refused(data):
    content = bytearray(HEAD + CLUSTER + simple_block(b"pixels") + simple_block(b"others"))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    try:
        read_all(bytes(content))
    except (EOFError, BrokenStream):
        return


@needs_gstreamer
def test_what_gstreamer_writes_is_read():
    words = (
        "-q videotestsrc num-buffers=3 ! video/x-raw,format=RGB,width=33,height=16,framerate=25/1"
    )
    command = ["gst-launch-1.0", *words.split(), "!", "matroskamux", "streamable=true",
               "timecodescale=10000", "max-cluster-duration=300000000", "!", "fdsink"]  # fmt: skip
    track, blocks = read_all(subprocess.run(command, capture_output=True, check=True).stdout)
    assert (track.codec, track.width, track.height) == ("V_UNCOMPRESSED", 33, 16)
    assert track.period_ns == 40_000_000
    assert [stream_ns for stream_ns, _ in blocks] == [0, 40_000_000, 80_000_000]
    assert {len(pixels) for _, pixels in blocks} == {1600}  # 16 rows of 99 bytes, padded to 100


@needs_gstreamer
@pytest.mark.parametrize("rate", [1600, 8000, 44100])
def test_rate_of_readings_is_read_even_where_it_is_the_formats_own_default(rate):
    words = f"-q audiotestsrc num-buffers=2 ! audio/x-raw,format=F32LE,rate={rate},channels=2"
    command = ["gst-launch-1.0", *words.split(), "!", "matroskamux", "streamable=true",
               "timecodescale=10000", "!", "fdsink"]  # fmt: skip
    track, blocks = read_all(subprocess.run(command, capture_output=True, check=True).stdout)
    assert (track.rate_hz, track.channels) == (rate, 2)
    assert blocks
