"""The one thing that walks over samples ask of whoever shows progress."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")


class Track(Protocol):
    """Something that passes items on and may show how far it is; `iter` shows nothing."""

    def __call__(self, items: Sequence[T], /) -> Iterable[T]:
        """Yield every item in order."""
        ...
