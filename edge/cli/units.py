"""`edge units`: write what a device and its plant need to run and watch a station by themselves."""

from __future__ import annotations

import argparse
import sys
from importlib.resources import files
from pathlib import Path

from edge.errors import InputError, MachineError

# Which file of the package goes where below --out.
PLACES = {
    "units/orin-inspect-inspector@.service": "systemd/orin-inspect-inspector@.service",
    "units/orin-inspect-publisher@.service": "systemd/orin-inspect-publisher@.service",
    "units/orin-inspect-monitor@.service": "systemd/orin-inspect-monitor@.service",
    "units/orin-inspect.sysusers.conf": "sysusers.d/orin-inspect.conf",
    "prometheus/orin-inspect.rules.yml": "prometheus/orin-inspect.rules.yml",
    "grafana/orin-inspect.json": "grafana/orin-inspect.json",
}
_HOMES = ("/home", "/root", "/run/user")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--out", type=Path, required=True, help="the folder to write into")
    parser.add_argument(
        "--force", action="store_true", help="replace files that an earlier run wrote there"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the files, with this interpreter's path filled in; print what to type next."""
    out: Path = arguments.out
    written = {out / place: _filled(source) for source, place in PLACES.items()}
    present = [path for path in written if path.exists()]
    if present and not arguments.force:
        raise InputError(
            where=out,
            expected="a folder without these files",
            found=", ".join(sorted(path.name for path in present)),
            do="Name another --out, or say --force to replace them.",
        )
    try:
        for path, text in written.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise InputError(
            where=out,
            expected="a folder that can be written",
            found=str(error),
            do="Name another --out.",
        ) from None
    print(_next_steps(out))
    return 0


def _filled(source: str) -> str:
    """Return a file of the package with this interpreter's path in it."""
    text = (files("device_agents") / source).read_text(encoding="utf-8")
    if not source.endswith(".service"):
        return text
    for folder in (sys.executable, *_folders_of_python()):
        if set(folder) & set(" \t\"'\\%$"):
            raise MachineError(
                where="edge units",
                expected="a path to Python that a unit file can hold as it is",
                found=folder,
                do="Install orin-inspect into a folder such as /opt/orin-inspect.",
            )
    return text.replace("@PYTHON@", sys.executable).replace("@HOME@", _home_lines())


def _home_lines() -> str:
    """Hide the homes from the agents, but not the Python that runs them where it lies in one."""
    inside = [
        folder
        for folder in _folders_of_python()
        if any(folder == home or folder.startswith(f"{home}/") for home in _HOMES)
    ]
    if not inside:
        return "ProtectHome=yes"
    return "\n".join(["ProtectHome=tmpfs", *(f"BindReadOnlyPaths={folder}" for folder in inside)])


def _folders_of_python() -> list[str]:
    """The interpreter's environment, the one it was made from, and this package."""
    package = Path(str(files("edge"))).parent
    return list(dict.fromkeys((sys.prefix, sys.base_prefix, str(package))))


def _next_steps(out: Path) -> str:
    return f"""Written to {out}. Next, on the device, with the station's name for s1:
  sudo cp {out}/systemd/*.service /etc/systemd/system/ && sudo systemctl daemon-reload
  sudo cp {out}/sysusers.d/orin-inspect.conf /etc/sysusers.d/ && sudo systemd-sysusers
  sudo install -D -m 644 station.toml /etc/orin-inspect/s1.toml   # outbox.path: see below
  sudo systemctl enable --now orin-inspect-{{inspector,publisher,monitor}}@s1
  systemctl status 'orin-inspect-*@s1'
In the station file: outbox.path = "/var/lib/orin-inspect/s1/outbox.sqlite", bundle and recording by
absolute paths outside the homes. For Prometheus: {out}/prometheus/orin-inspect.rules.yml under
rule_files; for Grafana: import {out}/grafana/orin-inspect.json."""
