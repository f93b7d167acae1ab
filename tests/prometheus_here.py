"""Where this machine has Prometheus and promtool: on the path, or beside the Python that runs."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

_PATH = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])
PROMETHEUS = shutil.which("prometheus", path=_PATH)
PROMTOOL = shutil.which("promtool", path=_PATH)

needs_promtool = pytest.mark.skipif(
    PROMTOOL is None,
    reason="promtool is not installed (Debian and Ubuntu: package prometheus): the alert rules are "
    "NOT tested on this machine",
)
needs_prometheus = pytest.mark.skipif(
    PROMETHEUS is None,
    reason="Prometheus is not installed (Debian and Ubuntu: package prometheus): that it takes the "
    "metrics and answers every panel's query is NOT tested on this machine",
)
