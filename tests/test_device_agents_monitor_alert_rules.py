"""The alert rules, held by promtool: one healthy station, and one thing at a time that is wrong.

Each row of WRONG says what is changed against HEALTHY (in promtool's notation, a value a minute),
which alert must fire with which labels beyond the station's own, at which minute, and from when on.
"""

from __future__ import annotations

import json
import re
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from prometheus_here import PROMTOOL, needs_promtool

RULES = Path(str(files("device_agents") / "prometheus/orin-inspect.rules.yml"))
PLACE = {"site": "n", "area": "a", "line": "l1", "station": "s1"}
DAY = 1440  # minutes
LAST = DAY - 1


def rows(name: str, label: str, values: dict[str, str], **others: str) -> list[tuple]:
    return [(name, value, {**others, label: state}) for state, value in values.items()]


HEALTHY: list[tuple[str, str, dict[str, str]]] = [
    *rows(
        *("inspections_total", "decision"),
        {"pass": "0+594x1500", "fail": "0+6x1500", "invalid": "0x1500"},
    ),
    *rows(
        *("events_total", "kind"),
        {"inspected": "0+600x1500", "image_only": "0x1500", "no_subscribers": "0x1500"},
    ),
    *rows(
        *("losses_total", "kind"),
        {"lost_behind": "0x1500", "dropped_defect": "0x1500", "dropped_free_running": "0+50x1500"},
    ),
    *rows(
        *("inspector_state", "state"),
        {"starting": "0x1500", "ready": "1x1500", "degraded": "0x1500", "failed": "0x1500"},
    ),
    ("inspector_state", "0x1500", {"state": "gone"}),
    *rows(
        *("publisher_state", "state"),
        {"connected": "1x1500", "away": "0x1500", "stopped": "0x1500", "gone": "0x1500"},
    ),
    *rows(
        *("source_state", "state"),
        {"playing": "1x1500", "ended": "0x1500", "failed": "0x1500"},
        source="main",
    ),
    ("latency_seconds", "0.03x1500", {"until": "verdict", "share": "0.99"}),
    ("latency_seconds", "0.04x1500", {"until": "durable", "share": "0.99"}),
    ("latency_seconds", "0.5x1500", {"until": "longest", "share": "1"}),
    ("temperature_celsius", "71x1500", {"zone": "tj"}),
    *[
        (name, value, {})
        for name, value in {
            "false_alarm_budget_ratio": "0.005x1500",
            "last_inspection_timestamp_seconds": "0+60x1500",
            "asked_parts_per_second": "10x1500",
            "parts_per_second": "9.9x1500",
            "budget_seconds": "0.1x1500",
            "outbox_readable": "1x1500",
            "outbox_records": "20x1500",
            "outbox_room_records": "500000x1500",
            "outbox_oldest_timestamp_seconds": "0+60x1500",
            "gpu_load_ratio": "0.85x1500",
            "memory_used_bytes": "6e9x1500",
            "memory_total_bytes": "8e9x1500",
            "throttled": "0x1500",
            "disk_free_bytes": "30e9x1500",
            "disk_total_bytes": "64e9x1500",
            "monitor_last_reading_timestamp_seconds": "0+60x1500",
        }.items()
    ],
]


class Wrong(NamedTuple):
    situation: str
    alert: str
    fires: dict[str, str] | None  # labels beyond the place; None: it must stay quiet
    changed: dict[str, str | None]  # by name, or name/label value; None: no such series
    at: int = 60  # minute
    quiet_at: int | None = None  # an earlier minute at which it has not fired yet
    new: dict[str, str] | None = None  # labels where `changed` names a series that is not there


def state(name: str, now: str, usual: str) -> dict[str, str | None]:
    return {f"{name}/{usual}": "0x1500", f"{name}/{now}": "1x1500"}


WRONG = [
    Wrong(
        *("the share of failed parts jumps for two hours", "OverkillSuspected", {}),
        {
            "inspections_total/fail": "0+6x1379 8274+60x120",
            "inspections_total/pass": "0+594x1379 819126+540x120",
        },
        *(LAST, 1320),
    ),
    Wrong(
        *("the share jumps, but over a few parts only", "OverkillSuspected", None),
        {
            "inspections_total/fail": "0x1379 0+1x120",
            "inspections_total/pass": "0+1x1500",
        },
        LAST,
    ),
    Wrong(
        *("a share that good parts alone would give", "OverkillSuspected", None),
        {"inspections_total/fail": "0x1379 0+2x120"},
        LAST,
    ),
    Wrong(
        *("failed parts vanish", "EscapeSuspected", {}),
        {
            "inspections_total/fail": "0+6x1350 8100x149",
            "inspections_total/pass": "0+594x1350 801900+600x149",
        },
        *(LAST, 1320),
    ),
    Wrong(
        *("no failed part where few were to be expected", "EscapeSuspected", None),
        {"inspections_total/fail": "0x600 1x899"},
        LAST,
    ),
    Wrong(
        *("one part in twenty cannot be judged", "ManyInvalid", {}),
        {"inspections_total/invalid": "0+30x1500"},
    ),
    Wrong(
        *("the sensor is away", "JudgedByImageAlone", {}),
        {"events_total/image_only": "0+60x1500"},
    ),
    Wrong(
        *("a drift flag stands", "DriftStands", {"flag": "focus"}),
        {"drift_flag": "1x1500"},
        quiet_at=5,
        new={"flag": "focus"},
    ),
    Wrong(
        *("the inspector is failed", "InspectorDown", {"state": "failed"}),
        state("inspector_state", "failed", "ready"),
    ),
    Wrong(
        *("the inspector's status is old", "InspectorDown", {"state": "gone"}),
        state("inspector_state", "gone", "ready"),
    ),
    Wrong(
        *("the inspector starts anew and is ready at once", "InspectorDown", None),
        {"inspector_state/ready": "1x58 0 1x1400", "inspector_state/gone": "0x58 1 0x1400"},
    ),
    Wrong(
        *("the inspector is degraded", "InspectorDegraded", {"state": "degraded"}),
        state("inspector_state", "degraded", "ready"),
        quiet_at=4,
    ),
    Wrong(
        *("a camera is unplugged", "SourceFailed", {"source": "main", "state": "failed"}),
        state("source_state", "failed", "playing"),
    ),
    Wrong(
        *("nothing inspected while a rate is asked for", "NothingInspected", {}),
        {"last_inspection_timestamp_seconds": "0+60x55 3300x1400"},
        quiet_at=50,
    ),
    Wrong(
        *("a line of one part a minute, between two parts", "NothingInspected", None),
        {
            "asked_parts_per_second": "0.0167x1500",
            "last_inspection_timestamp_seconds": "0+60x55 3300x1400",
        },
    ),
    Wrong(
        *("nobody asks for a rate", "NothingInspected", None),
        {"asked_parts_per_second": None, "last_inspection_timestamp_seconds": "0x1500"},
    ),
    Wrong(
        *("the rate is not held", "RateNotHeld", {}),
        {"parts_per_second": "7x1500"},
        quiet_at=2,
    ),
    Wrong(
        *("an inspector that starts has no rate yet", "RateNotHeld", None),
        {"parts_per_second": "0x1500", **state("inspector_state", "starting", "ready")},
    ),
    Wrong(
        *("records become durable too late", "LatencyOverBudget", {}),
        {"latency_seconds/durable": "0.12x1500"},
    ),
    Wrong(
        *("defects are dropped", "Losing", {"kind": "dropped_defect"}),
        {"losses_total/dropped_defect": "0x58 3x1400"},
        quiet_at=55,
    ),
    Wrong(
        *("a new epoch begins at 0, which is no loss", "Losing", None),
        {"losses_total/dropped_defect": "7x58 0x1400"},
    ),
    Wrong(
        *("the broker is away", "PublisherAway", {"state": "connected"}),
        state("publisher_state", "away", "connected"),
        quiet_at=4,
    ),
    Wrong(
        *("records wait for ten minutes", "RecordsWait", {}),
        {"outbox_oldest_timestamp_seconds": "0+60x49 2940x1400"},
        quiet_at=52,
    ),
    Wrong(
        *("no record waits at all", "RecordsWait", None),
        {"outbox_oldest_timestamp_seconds": None},
    ),
    Wrong(
        *("the outbox is over half full", "OutboxFilling", {}), {"outbox_records": "250001x1500"}
    ),
    Wrong(*("the outbox cannot be read", "OutboxUnreadable", {}), {"outbox_readable": "0x1500"}),
    Wrong(
        *("nobody subscribes", "NobodySubscribes", {"kind": "no_subscribers"}),
        {"events_total/no_subscribers": "0+600x1500"},
    ),
    Wrong(
        *("the GPU is busy for five minutes", "GpuBusy", {}),
        {"gpu_load_ratio": "0.97x1500"},
        quiet_at=4,
    ),
    Wrong(
        *("the GPU is busy for three minutes", "GpuBusy", None),
        {"gpu_load_ratio": "0.5x57 0.99x3 0.5x1400"},
        61,
    ),
    Wrong(*("memory runs out", "MemoryNearlyFull", {}), {"memory_used_bytes": "7.5e9x1500"}),
    Wrong(*("the module is hot", "Hot", {"zone": "tj"}), {"temperature_celsius": "96x1500"}),
    Wrong(*("over-current, now and then", "Throttled", {}), {"throttled": "0 1 0 1 0 1 0 1x1500"}),
    Wrong(*("the disk is nearly full", "DiskNearlyFull", {}), {"disk_free_bytes": "3e9x1500"}),
    Wrong(
        *("the station lives in 1970", "ClockWrong", {}),
        {"monitor_last_reading_timestamp_seconds": "100x1500"},
        quiet_at=4,
    ),
    Wrong(
        *("the monitor was there and is gone", "MonitorGone", {}),
        {"monitor_last_reading_timestamp_seconds": "0+60x40 stale"},
        quiet_at=30,
    ),
    Wrong(
        *("the monitor is there", "NoStationAtAll", None),
        {"monitor_last_reading_timestamp_seconds": "0+60x1500"},
    ),
]


def alerts_of(rules: dict) -> dict[str, dict]:
    found = [rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule]
    return {rule["alert"].removeprefix("OrinInspect"): rule for rule in found}


ALERTS = alerts_of(yaml.safe_load(RULES.read_text()))


def series_of(
    changed: dict[str, str | None], new: dict[str, str] | None, minutes: int
) -> list[dict[str, str]]:
    found, used = [], set()
    rows = [*HEALTHY, *([(name, "", new) for name in changed] if new else [])]
    for name, usual, labels in rows:
        keys = {name, *(f"{name}/{label}" for label in labels.values())} & changed.keys()
        used |= keys
        values = changed[keys.pop()] if keys else usual
        if values is not None:
            text = ",".join(f'{key}="{value}"' for key, value in {**PLACE, **labels}.items())
            # Values beyond the last minute that is looked at only take time.
            enough = re.sub(r"x1[45]00$", f"x{minutes + 1}", values)
            found.append({"series": f"orin_inspect_{name}{{{text}}}", "values": enough})
    assert used == changed.keys(), "a test changes a series that does not exist"
    return found


def expectation(alert: str, minute: int, labels: dict[str, str] | None) -> dict:
    expected: dict = {"eval_time": f"{minute}m", "alertname": f"OrinInspect{alert}"}
    if labels is not None:
        severity = ALERTS[alert]["labels"]["severity"]
        expected["exp_alerts"] = [{"exp_labels": {"severity": severity, **PLACE, **labels}}]
    return expected


def promtool_test(folder: Path, rules: dict, tests: list[dict]) -> subprocess.CompletedProcess:
    (folder / "rules.yml").write_text(json.dumps(rules))
    document = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": tests}
    (folder / "test.yml").write_text(json.dumps(document))
    return subprocess.run(
        [str(PROMTOOL), "test", "rules", "test.yml"], cwd=folder, capture_output=True, text=True
    )


def without_annotations(only: str | None = None) -> dict:
    """Promtool compares them word by word; what an alert says is held by a test of its own.

    `only` leaves one alert, with the shares that it may be about: the others take time.
    """
    rules = yaml.safe_load(RULES.read_text())
    for alert in alerts_of(rules).values():
        del alert["annotations"]
    if only is not None:
        mine = ALERTS[only]["expr"]
        for group in rules["groups"]:
            group["rules"] = [
                rule
                for rule in group["rules"]
                if rule.get("alert") == f"OrinInspect{only}"
                or ("record" in rule and "station:" in mine)
            ]
    return rules


def test_of(wrong: Wrong) -> dict:
    early = (
        [] if wrong.quiet_at is None else [expectation(wrong.alert, wrong.quiet_at, labels=None)]
    )
    return {
        "interval": "1m",
        "input_series": series_of(wrong.changed, wrong.new, wrong.at),
        "alert_rule_test": [*early, expectation(wrong.alert, wrong.at, wrong.fires)],
    }


test_of.__test__ = False  # type: ignore[attr-defined]  it makes promtool's tests, and is none


@needs_promtool
def test_rules_are_what_promtool_takes():
    checked = subprocess.run(
        [str(PROMTOOL), "check", "rules", str(RULES)], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_alert_has_a_severity_a_summary_and_a_next_step():
    for name, alert in ALERTS.items():
        assert alert["labels"]["severity"] in ("warning", "critical"), name
        assert alert["annotations"].keys() == {"summary", "description"}, name
        assert len(alert["annotations"]["description"]) > 60, name


def test_every_alert_is_seen_firing_in_this_file():
    fired = {wrong.alert for wrong in WRONG if wrong.fires is not None}
    assert fired | {"NoStationAtAll"} == ALERTS.keys()


@needs_promtool
def test_healthy_station_raises_nothing_however_long_it_runs(tmp_path):
    quiet = [expectation(alert, minute, None) for minute in (20, 180, LAST) for alert in ALERTS]
    tests = [{"interval": "1m", "input_series": series_of({}, None, DAY), "alert_rule_test": quiet}]
    result = promtool_test(tmp_path, without_annotations(), tests)
    assert result.returncode == 0, result.stdout + result.stderr


@needs_promtool
@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.situation)
def test_alert_fires_where_it_should_and_not_before(tmp_path, wrong):
    result = promtool_test(tmp_path, without_annotations(wrong.alert), [test_of(wrong)])
    assert result.returncode == 0, result.stdout + result.stderr


@needs_promtool
def test_plant_without_any_station_is_told_so(tmp_path):
    test = {
        "interval": "1m",
        "input_series": [{"series": 'up{job="orin-inspect"}', "values": "0x60"}],
        "alert_rule_test": [
            {
                "eval_time": "30m",
                "alertname": "OrinInspectNoStationAtAll",
                "exp_alerts": [{"exp_labels": {"severity": "warning"}}],
            }
        ],
    }
    result = promtool_test(tmp_path, without_annotations(), [test])
    assert result.returncode == 0, result.stdout + result.stderr


@needs_promtool
def test_what_alerts_say_names_the_station_and_has_no_hole(tmp_path):
    """Run the rules with their texts: promtool then tells what it got instead of nothing."""
    firing = [wrong for wrong in WRONG if wrong.fires is not None]
    rules = yaml.safe_load(RULES.read_text())
    short = [wrong for wrong in firing if wrong.at < LAST]  # a day of minutes takes time
    result = promtool_test(tmp_path, rules, [test_of(wrong) for wrong in short])
    said = re.findall(r'summary="((?:[^"\\]|\\.)*)"', result.stdout + result.stderr)
    assert len(said) >= len(short) > 20
    for summary in said:
        assert "l1/s1" in summary
        assert "error" not in summary
        assert "<no value>" not in summary
        assert "NaN" not in summary
