"""A raw Matroska stream, block by block: what frames and readings come through a pipe in.

GStreamer's muxer says in it what a bare pipe would leave to guessing: width and height, channels
and rate, and for each block its size and its time. Only what `matroskamux` writes is read: one
track, no lacing, no compression. Sizes are held against limits before anything is allocated.
Elements by number: RFC 9559 (Matroska), RFC 8794 (EBML).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedIOBase

_EBML, _INFO, _TRACKS, _TRACK = 0x1A45DFA3, 0x1549A966, 0x1654AE6B, 0xAE
_OPENED = (0x18538067, 0x1F43B675, 0xA0)  # Segment, Cluster, BlockGroup: read through
_CLUSTER_TIME, _SIMPLE_BLOCK, _BLOCK = 0xE7, 0xA3, 0xA1
_TIME_SCALE, _PERIOD, _CODEC, _VIDEO, _AUDIO = 0x2AD7B1, 0x23E383, 0x86, 0xE0, 0xE1
_WIDTH, _HEIGHT, _RATE, _CHANNELS = 0xB0, 0xBA, 0xB5, 0x9F
_BLOCK_HEAD_BYTES = 4  # track number (one byte, for there is one track), time, flags
_DEFAULT_RATE_HZ = 8000.0  # of a track that does not say: writers leave out what is the default
_SMALL_BYTES = 1 << 20  # more than any element holds that is neither block nor cluster
_BLOCK_LIMIT_BYTES = 1 << 30


class BrokenStream(ValueError):
    """Bytes that are not the stream that was asked for."""


@dataclass(frozen=True)
class Track:
    """What the stream's blocks hold. The figures of the other kind are 0."""

    codec: str  # "V_UNCOMPRESSED" or "A_PCM/FLOAT/IEEE"
    width: int = 0
    height: int = 0
    channels: int = 0
    rate_hz: float = 0.0
    period_ns: int = 0  # from one frame to the next, where it is stated; else 0


class MatroskaStream:
    """Reads one stream from its start. Every method raises BrokenStream, or EOFError at its end."""

    def __init__(self, file: BufferedIOBase) -> None:
        self._file = file
        self._scale_ns = 1_000_000
        self._cluster_time = 0
        self._left = 0  # bytes of the current block that were not read yet
        self._begun = False

    def track(self) -> Track:
        """Read up to the description of the track."""
        while True:
            name, size = self._element()
            if name == _INFO:
                self._scale_ns = self._number(
                    dict(_elements(self._small(size))), _TIME_SCALE, 10**6
                )
            elif name == _TRACKS:
                return _track_from(self._small(size))
            elif name in (_SIMPLE_BLOCK, _BLOCK):
                raise BrokenStream("a block before the description of its track")
            elif name not in _OPENED:
                self._small(size)

    def next_block(self) -> tuple[int, int]:
        """Return (time in ns, size in bytes) of the next block, which `read_into` then takes."""
        if self._left:
            raise AssertionError("the last block was not read")
        while True:
            name, size = self._element()
            if name == _CLUSTER_TIME:
                self._cluster_time = int.from_bytes(self._small(size), "big")
            elif name in (_SIMPLE_BLOCK, _BLOCK):
                if not _BLOCK_HEAD_BYTES < size <= _BLOCK_LIMIT_BYTES:
                    raise BrokenStream(f"a block of {size} bytes")
                time, flags = struct.unpack(">hB", self._exactly(_BLOCK_HEAD_BYTES)[1:])
                if flags & 0x06:
                    raise BrokenStream("a laced block")
                self._left = size - _BLOCK_HEAD_BYTES
                return (self._cluster_time + time) * self._scale_ns, self._left
            elif name not in _OPENED:
                self._small(size)

    def read_into(self, memory: memoryview) -> None:
        """Read the whole block into `memory`, which has its size."""
        assert len(memory) == self._left
        self._left = 0
        done = 0
        while done < len(memory):
            count = self._file.readinto(memory[done:])
            if not count:
                raise EOFError
            done += count

    def _element(self) -> tuple[int, int]:
        """Read one element's name and size. A size that is not known is 2**56 - 1 or so."""
        first = self._exactly(1)[0]
        if first < 0x10:
            raise BrokenStream(f"0x{first:02X} where an element's name begins")
        if not self._begun and first != _EBML >> 24:
            raise BrokenStream("no Matroska header")
        self._begun = True
        more = 8 - first.bit_length()
        name = int.from_bytes(bytes((first,)) + self._exactly(more), "big")
        first = self._exactly(1)[0]
        if first == 0:
            raise BrokenStream("a size of more than eight bytes")
        more = 8 - first.bit_length()
        bits = first & ((1 << (7 - more)) - 1)
        return name, int.from_bytes(bytes((bits,)) + self._exactly(more), "big")

    def _small(self, size: int) -> bytes:
        if size > _SMALL_BYTES:
            raise BrokenStream(f"an element of {size} bytes")
        return self._exactly(size)

    def _exactly(self, size: int) -> bytes:
        content = self._file.read(size)
        if len(content) < size:
            raise EOFError
        return content

    @staticmethod
    def _number(elements: dict[int, bytes], name: int, default: int) -> int:
        return int.from_bytes(elements[name], "big") if elements.get(name) else default


def _track_from(content: bytes) -> Track:
    tracks = [body for name, body in _elements(content) if name == _TRACK]
    if len(tracks) != 1:
        raise BrokenStream(f"{len(tracks)} tracks")
    fields = dict(_elements(tracks[0]))
    video = dict(_elements(fields.get(_VIDEO, b"")))
    audio = dict(_elements(fields.get(_AUDIO, b"")))
    return Track(
        codec=fields.get(_CODEC, b"").rstrip(b"\0").decode("ascii", "replace"),
        width=int.from_bytes(video.get(_WIDTH, b""), "big"),
        height=int.from_bytes(video.get(_HEIGHT, b""), "big"),
        channels=int.from_bytes(audio.get(_CHANNELS, b"\1" if audio else b""), "big"),
        rate_hz=_real(audio[_RATE]) if audio.get(_RATE) else _DEFAULT_RATE_HZ * bool(audio),
        period_ns=int.from_bytes(fields.get(_PERIOD, b""), "big"),
    )


def _real(content: bytes) -> float:
    if len(content) not in (0, 4, 8):
        raise BrokenStream(f"a real number of {len(content)} bytes")
    formats = {0: "", 4: ">f", 8: ">d"}
    return float(struct.unpack(formats[len(content)], content)[0]) if content else 0.0


def _elements(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (name, body) of each element in `content`."""
    at = 0
    while at < len(content):
        name, at = _vint(content, at, keep_marker=True)
        size, at = _vint(content, at, keep_marker=False)
        if at + size > len(content):
            raise BrokenStream("an element longer than the one it lies in")
        yield name, content[at : at + size]
        at += size


def _vint(content: bytes, at: int, *, keep_marker: bool) -> tuple[int, int]:
    if at >= len(content) or content[at] == 0:
        raise BrokenStream("an element without a name or a size")
    length = 9 - content[at].bit_length()
    value = int.from_bytes(content[at : at + length], "big")
    if not keep_marker:
        value &= (1 << (7 * length)) - 1
    return value, at + length
