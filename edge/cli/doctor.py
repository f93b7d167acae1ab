"""`edge doctor`: look at each part of a station, and say the next step for each that fails."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define `edge doctor`."""
    parser.add_argument("--station", type=Path, required=True, help="the station file (TOML)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per finding")


def run(arguments: argparse.Namespace) -> int:
    """Print one line per finding. Returns 1 where one failed, else 0."""
    logging.disable(logging.WARNING)  # what is wrong is said once, as a finding
    try:
        return _examine(arguments)
    finally:
        logging.disable(logging.NOTSET)


def _examine(arguments: argparse.Namespace) -> int:
    from device_agents.doctor.checks import CHECKS
    from device_agents.doctor.diagnosis import Finding, Patient, findings_of, found_wrong
    from device_agents.station import station_from_toml
    from edge.errors import InputError
    from export.golden import golden_problems

    say = _say_json if arguments.json else _say_line
    try:
        station = station_from_toml(arguments.station)
    except InputError as error:
        say(found_wrong("station file", error))
        names = ", ".join(check.name for check in CHECKS)
        say(Finding(names, "skipped", "they need a station file that can be read"))
        return 1
    say(Finding("station file", "ok", f"{arguments.station}: {station.station}"))
    failed = 0
    for finding in findings_of(Patient(station, golden_problems), CHECKS):
        say(finding)
        failed += finding.outcome == "fail"
    if not arguments.json:
        print(f"{failed} of the checks failed." if failed else "Nothing failed.")
    sys.stdout.flush()
    return 1 if failed else 0


def _say_line(finding: object) -> None:
    from device_agents.doctor.diagnosis import Finding

    assert isinstance(finding, Finding)
    print(f"{finding.outcome:<8}{finding.check}: {finding.said}", flush=True)
    if finding.do:
        print(f"{'':8}-> {finding.do}", flush=True)


def _say_json(finding: object) -> None:
    from device_agents.doctor.diagnosis import Finding

    assert isinstance(finding, Finding)
    print(json.dumps(asdict(finding)), flush=True)
