"""Dashboard and alert rules against a real monitor's figures and in a real Prometheus."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from prometheus_here import PROMETHEUS, PROMTOOL, needs_prometheus, needs_promtool
from watched_station import free_port, scraped, station_at_work

PACKAGE = Path(str(files("device_agents")))
DASHBOARD = json.loads((PACKAGE / "grafana/orin-inspect.json").read_text())
RULES = yaml.safe_load((PACKAGE / "prometheus/orin-inspect.rules.yml").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def queries() -> list[str]:
    """Every panel's expressions, with Grafana's variables as it would fill them in."""
    found = [target["expr"] for panel in PANELS for target in panel["targets"]]
    found += [note["expr"] for note in DASHBOARD["annotations"]["list"] if "expr" in note]
    values = {"site": ".*", "line": ".*", "station": ".*", "__rate_interval": "4s"}
    return [re.sub(r"\$(\w+)", lambda name: values[name[1]], query) for query in found]


def exposed(port: int) -> set[str]:
    families = text_string_to_metric_families(scraped(port))
    return {sample.name for family in families for sample in family.samples}


def names_in(text: str) -> set[str]:
    return set(re.findall(r"\borin_inspect_\w+", re.sub(r"station:orin_inspect_\w+:\w+", "", text)))


@pytest.fixture(scope="module")
def port(tmp_path_factory) -> Iterator[int]:
    """The metrics port of a station at work."""
    folder = tmp_path_factory.mktemp("station")
    with station_at_work(folder, free_port()) as station:
        yield station.monitor.port


@pytest.fixture(scope="module")
def prometheus(port, tmp_path_factory) -> Iterator[str]:
    """A real Prometheus that has scraped the station for some seconds, the rules loaded."""
    folder = tmp_path_factory.mktemp("prometheus")
    # Once a minute is too slow for a test; the rules stay as they are otherwise.
    fast = [{**group, "interval": "1s"} for group in RULES["groups"]]
    (folder / "rules.yml").write_text(json.dumps({"groups": fast}))
    targets = [{"targets": [f"127.0.0.1:{port}"]}]
    configuration = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yml"],
        "scrape_configs": [{"job_name": "orin-inspect", "static_configs": targets}],
    }
    (folder / "prometheus.yml").write_text(json.dumps(configuration))
    address = f"127.0.0.1:{free_port()}"
    process = subprocess.Popen(
        [
            str(PROMETHEUS),
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={address}",
        ],
        cwd=folder,
        stderr=subprocess.DEVNULL,
    )
    try:
        until_s = time.monotonic() + 60
        share = "station:orin_inspect_fail_share:ratio1h"
        while time.monotonic() < until_s and not answer(f"http://{address}", share):
            time.sleep(0.5)
        yield f"http://{address}"
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
        process.kill()


def answer(prometheus: str, query: str) -> list[dict] | None:
    """Return what the query gives now; None while Prometheus is not up."""
    try:
        with urlopen(f"{prometheus}/api/v1/query?{urlencode({'query': query})}", timeout=10) as got:
            return json.load(got)["data"]["result"]
    except HTTPError as refused:
        raise AssertionError(f"{query}: {refused.read().decode()}") from None
    except URLError:
        return None


def nearly_full(port: int) -> bool:
    """Whether under a tenth of the outbox's disk is free, by the monitor's own figures."""
    families = text_string_to_metric_families(scraped(port))
    bytes_ = {sample.name: sample.value for family in families for sample in family.samples}
    return bytes_["orin_inspect_disk_free_bytes"] < 0.1 * bytes_["orin_inspect_disk_total_bytes"]


def rules_in(prometheus: str) -> list[dict]:
    with urlopen(f"{prometheus}/api/v1/rules", timeout=10) as got:
        groups = json.load(got)["data"]["groups"]
    return [rule for group in groups for rule in group["rules"]]


def raised(prometheus: str) -> set[str]:
    """The alerts that are pending or firing."""
    return {rule["name"] for rule in rules_in(prometheus) if rule.get("alerts")}


def test_every_metric_that_is_asked_for_exists(port):
    asked = set().union(*map(names_in, queries()))
    for group in RULES["groups"]:
        asked = asked.union(*(names_in(rule["expr"]) for rule in group["rules"]))
    assert len(asked) > 30
    until_s = time.monotonic() + 10  # the first looks may come before the agents' first words
    while asked - exposed(port) and time.monotonic() < until_s:
        time.sleep(0.2)
    assert asked - exposed(port) == set()


@needs_promtool
def test_promtool_finds_nothing_wrong_with_names_and_units(port):
    page = scraped(port)
    linted = subprocess.run(
        [str(PROMTOOL), "check", "metrics"], input=page, capture_output=True, text=True
    )
    assert linted.returncode == 0, linted.stdout + linted.stderr


def test_every_series_that_rules_record_is_the_one_that_is_shown():
    recorded = {r["record"] for group in RULES["groups"] for r in group["rules"] if "record" in r}
    shown = set(re.findall(r"station:orin_inspect_\w+:\w+", " ".join(queries())))
    assert shown <= recorded


def test_every_panel_has_a_plain_title_a_unit_and_a_legend():
    titles = [panel["title"] for panel in PANELS]
    assert len(set(titles)) == len(titles)
    for panel in PANELS:
        assert "_" not in panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert all(target["legendFormat"] for target in panel["targets"]), panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_rows_are_the_line_its_losses_its_latency_and_the_device():
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == ["Line", "Losses", "Latency", "Device"]


def test_panels_lie_beside_each_other_within_the_grid():
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not taken & cells, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


@needs_prometheus
def test_prometheus_answers_every_panel_with_figures(prometheus):
    asked = [query for query in queries() if not query.startswith("ALERTS")]
    assert len(asked) > 40
    assert [query for query in asked if not answer(prometheus, query)] == []


@needs_prometheus
def test_prometheus_raises_what_is_wrong_with_this_station(prometheus, port):
    """Its files say: GPU busy and throttled, drift, one part in five invalid; no more is raised."""
    expected = {f"OrinInspect{n}" for n in ("Throttled", "GpuBusy", "DriftStands", "ManyInvalid")}
    # All but the disk is the test's own. What the machine's disk lacks is rightly raised as well.
    if nearly_full(port):
        expected.add("OrinInspectDiskNearlyFull")
    until_s = time.monotonic() + 30
    while not expected <= raised(prometheus) and time.monotonic() < until_s:
        time.sleep(0.5)
    assert raised(prometheus) == expected
    assert [rule["name"] for rule in rules_in(prometheus) if rule["health"] != "ok"] == []
