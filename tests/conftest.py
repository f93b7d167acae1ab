"""What several tests share: the real data, where it is, and one small simulated line."""

import os
from pathlib import Path

# As `edge` does it, and before any test loads torch: idle threads sleep instead of spinning.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# As in the processes that tests start: sums differ in their last bits with the number of threads,
# and a run that was killed there must equal the unbroken one here.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
from hypothesis import settings

from edge.artefact import new_folder
from edge.recording.format import Recording
from edge.simulate.line import LineOrder, simulate

# An example that took long on a loaded machine is no failure. CI tries the same examples each time;
# people, who can look at what is found, try others.
settings.register_profile("any machine", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("EDGE_CI") else "any machine")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets. Mark the test with `real_data` too."""
    folder = Path(os.environ.get("EDGE_DATA") or REPOSITORY / ".." / "shared" / "data").resolve()
    if not (folder / "ballscrew" / "metadata.csv").is_file():
        pytest.skip(f"NO REAL DATA at {folder}: set EDGE_DATA to the folder that holds ballscrew/")
    return folder


@pytest.fixture(scope="session")
def simulated_line(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """A small simulated recording, to read and never to change."""
    out = tmp_path_factory.mktemp("line") / "rec"
    with new_folder(out) as partial:
        simulate(LineOrder(parts=60, seed=7, size=(96, 72)), partial)
    return Recording.open(out)
