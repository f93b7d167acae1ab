"""Numbers on the command line, as types for argparse: what means nothing is refused at once."""

from __future__ import annotations

import argparse
import os


def at_least_one(text: str) -> int:
    """Read a count from the command line."""
    return _at_least(1, text)


def not_negative(text: str) -> int:
    """Read a number that counts from 0 from the command line."""
    return _at_least(0, text)


def threads(text: str) -> int:
    """Read a number of threads from the command line: no more than wait for each other for ever."""
    number = _at_least(1, text)
    most = max(64, 4 * (os.cpu_count() or 1))
    if number > most:
        raise argparse.ArgumentTypeError(f"{number} is above {most}")
    return number


def _at_least(least: int, text: str) -> int:
    number = int(text)
    if number < least:
        raise argparse.ArgumentTypeError(f"{number} is below {least}")
    return number
