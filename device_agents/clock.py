"""Whether this machine knows the time: after a boot without a battery it is 1970."""

from __future__ import annotations

import time

# Nothing of this software existed before: a clock that says less has not been set since boot.
SOFTWARE_SINCE_UNIX_S = 1_793_491_200.0  # 2026-11-01


def clock_is_set(now_s: float | None = None) -> bool:
    """Tell whether the clock may be right."""
    return (time.time() if now_s is None else now_s) >= SOFTWARE_SINCE_UNIX_S


def now_iso() -> str | None:
    """Return the time as ISO 8601 UTC, or None where the clock is clearly wrong."""
    if not clock_is_set():
        return None
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
