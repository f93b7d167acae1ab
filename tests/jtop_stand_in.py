"""A package `jtop` for tests: the part of jetson-stats' API that we call, with an Orin's answers.

What real jetson-stats calls by these names is checked where it is installed.
"""

from __future__ import annotations

from pathlib import Path

CODE = '''
from datetime import timedelta

class JtopException(Exception):
    def __init__(self, message):
        super().__init__(message, "")
        self.message = message

class jtop:
    """Answers from the file `mood` beside this package: "well", "refuses", "lost" or "hangs"."""

    def __init__(self, interval=1.0):
        self.interval = interval

    def start(self):
        if mood() == "refuses":
            raise JtopException("Mismatch version jtop service: [4.2.12] and client: [7.2.2].")
        if mood() == "hangs":
            import time
            time.sleep(3600)

    def ok(self, spin=False):
        return mood() == "well"

    def close(self):
        pass

    board = {"hardware": {"Module": "NVIDIA Jetson AGX Orin (64GB ram)", "L4T": "36.4.7"}}
    nvpmodel = "MAXN"
    uptime = timedelta(seconds=77)
    temperature = {
        "cpu": {"temp": 50.5, "online": True},
        "cv0": {"temp": -256, "online": False},
        "gpu": {"temp": 48.0, "online": True},
        "strange": None,
    }
    power = {
        "rail": {"VDD_GPU_SOC": {"volt": 19136, "curr": 416, "power": 7961, "avg": 7900}},
        "tot": {"power": 12000, "avg": 11000},
    }
    gpu = {"gpu": {"type": "integrated", "status": {"load": 0.0}, "freq": {"cur": 1300500}}}
    memory = {"RAM": {"tot": 62800000, "used": 6280000}, "EMC": {"cur": 3199000, "val": 12}}

    @property
    def disk(self):
        raise KeyError("load")

def mood():
    import pathlib
    return (pathlib.Path(__file__).parent / "mood").read_text()
'''


def write_jtop(folder: Path, mood: str) -> None:
    """Write the package `jtop` into `folder`, which a test puts on sys.path."""
    (folder / "jtop").mkdir(parents=True, exist_ok=True)
    (folder / "jtop/__init__.py").write_text(CODE)
    set_mood(folder, mood)


def set_mood(folder: Path, mood: str) -> None:
    (folder / "jtop/mood").write_text(mood)
