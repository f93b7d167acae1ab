"""The documents of the contract: true to the code, whole, and valid by public validators."""

import json
import subprocess
import sys
import time

import jsonschema
import pytest
from asyncapi_parser import errors_in_each
from hypothesis import given, settings
from hypothesis import strategies as st
from small_station import edge, needs_broker, write_bundle, write_squares, write_station
from test_edge_messages import ANYTHING, paths_in

from device_agents.broker import free_port, running_broker
from device_agents.mqtt.address import BrokerAddress
from device_agents.mqtt.link import Link
from edge.examples import EXAMPLES, STATION
from edge.messages import KIND_TYPES, Command, UnreadableMessage, decode, encode
from edge.schema import asyncapi_document, json_schema_of, write_schemas
from edge.topics import DELIVERIES, KINDS, filter_for, station_and_kind, topic_of

HEALTH_OF = ("inspector", "publisher", "machine")
VALIDATORS = {
    kind: jsonschema.Draft202012Validator(
        json_schema_of(kind), format_checker=jsonschema.FormatChecker()
    )
    for kind in KINDS
}


def document_of(kind, index=0):
    return json.loads(encode(EXAMPLES[kind][index].message))


def objects_in(document):
    """Every object of a JSON document."""
    if isinstance(document, dict):
        yield document
        for value in document.values():
            yield from objects_in(value)
    elif isinstance(document, list):
        for value in document:
            yield from objects_in(value)


@pytest.mark.parametrize("kind", KINDS)
def test_each_schema_is_one_by_the_metaschema_and_takes_each_example(kind):
    jsonschema.Draft202012Validator.check_schema(json_schema_of(kind))
    for example in EXAMPLES[kind]:
        VALIDATORS[kind].validate(json.loads(encode(example.message)))


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_fields_are_left_alone_at_every_depth(kind):
    assert not [
        o for o in objects_in(json_schema_of(kind)) if o.get("additionalProperties") is False
    ]
    document = document_of(kind)
    for inner in list(objects_in(document)):
        if "counters" in inner or "station" in inner or "site" in inner or "request_id" in inner:
            inner["added_later"] = [1]
    VALIDATORS[kind].validate(document)
    assert decode(json.dumps(document).encode(), KIND_TYPES[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_every_struct_says_what_it_is_and_every_bare_field_has_its_unit(kind):
    schema = json_schema_of(kind)
    for struct in (schema, *schema["$defs"].values()):
        assert struct["description"]
        for name, field in struct["properties"].items():
            known_by_name = name.endswith(("_ms", "_celsius", "_watts", "_mhz", "_percent"))
            known_by_type = "enum" in field or "$ref" in field or "items" in field
            in_a_place = name in ("site", "area", "line", "station")
            named = name in ("power_mode", "publisher")
            known = known_by_name or known_by_type or in_a_place or named
            assert "description" in field or known or "_bytes" in name, name


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("inspection", ("sequence",), 0),
        ("inspection", ("sequence",), "7"),
        ("inspection", ("decision",), "maybe"),
        ("inspection", ("inspection_id",), ""),
        ("inspection", ("inspected_at",), "2026-03-02T06:00:00+01:00"),
        ("inspection", ("captured_at",), "2026-03-02 06:00:00"),
        ("inspection", ("timings", "infer_ms"), None),
        ("inspection", ("station", "line"), "a/b"),
        ("inspection", ("station", "site"), "$SYS"),
        ("presence", ("state",), "away"),
        ("health", ("outbox_depth",), -1),
        ("health", ("counters", "pass"), 1.5),
        ("health", ("inspector", "state"), "well"),
        ("picture", ("data",), None),
        ("command", ("want",), ["everything"]),
        *((kind, ("schema",), 2) for kind in KINDS),
    ],
)
def test_a_broken_message_is_invalid(kind, path, value):
    assert not VALIDATORS[kind].is_valid(with_value(document_of(kind), path, value))


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_that_lacks_what_the_schema_requires_is_unreadable_too(kind):
    required = json_schema_of(kind)["required"]
    assert "schema" in required
    for field in json_schema_of(kind)["properties"]:
        document = document_of(kind)
        document.pop(field, None)
        assert VALIDATORS[kind].is_valid(document) == (field not in required)
        if field in required:
            with pytest.raises(UnreadableMessage):
                decode(json.dumps(document).encode(), KIND_TYPES[kind])
        else:
            decode(json.dumps(document).encode(), KIND_TYPES[kind])


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_what_the_schema_calls_valid_is_readable(data):
    """A producer of another make that keeps to the schema is understood."""
    kind = data.draw(st.sampled_from(KINDS))
    document = document_of(kind)
    path = data.draw(st.sampled_from(sorted(paths_in(document))))
    payload = json.dumps(with_value(document, path, data.draw(ANYTHING))).encode()
    try:
        document = json.loads(payload, parse_constant=lambda name: {name: "is no JSON"})
    except ValueError:  # an integer of more digits than Python reads
        return
    if VALIDATORS[kind].is_valid(document):
        problem = problem_of(payload, kind)
        # Beyond what a schema can say: 7.0 is an integer to it, and no number too large.
        excused = ("got `float`", "out of range", "base64", "surrogate", "truncated", "200 ch")
        assert not problem or any(word in problem for word in excused), problem


def problem_of(payload, kind):
    """Why a payload is unreadable, or ""."""
    try:
        decode(payload, KIND_TYPES[kind])
    except UnreadableMessage as problem:
        return str(problem)
    return ""


def with_value(document, path, value):
    """A copy with another value at `path`."""
    copy = json.loads(json.dumps(document))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return copy


def test_asyncapi_document_is_valid_by_asyncapis_own_parser():
    document = asyncapi_document()
    broken = [
        with_value(document, ("operations", "sendInspection", "action"), "shout"),
        with_value(document, ("operations", "receiveCommand", "channel", "$ref"), "#/channels/no"),
        with_value(document, ("operations", "sendPresence", "bindings", "mqtt", "qos"), 3),
        with_value(document, ("channels", "health", "parameters", "site"), None),
        with_value(document, ("components", "schemas", "Health", "type"), "thing"),
    ]
    errors, *errors_of_broken = errors_in_each([document, *broken])
    assert errors == []
    assert all(errors_of_broken), "a validator that finds nothing in these proves nothing"


def test_asyncapi_document_names_the_topics_and_the_delivery_of_the_code():
    document = asyncapi_document()
    assert set(document["channels"]) == set(KINDS)
    for kind, channel in document["channels"].items():
        levels = {level: getattr(STATION, level) for level in channel["parameters"]}
        assert channel["address"].format(**levels) == topic_of(STATION, kind)
    mqtt = {
        operation["channel"]["$ref"].rsplit("/")[-1]: operation
        for operation in document["operations"].values()
    }
    for kind, delivery in DELIVERIES.items():
        bound = mqtt[kind]["bindings"]["mqtt"]
        assert (bound["qos"], bound["retain"]) == (delivery.qos, delivery.retain)
        assert mqtt[kind]["action"] == ("receive" if kind == "command" else "send")


def test_documents_are_the_same_bytes_each_time(tmp_path):
    (tmp_path / "here").mkdir()
    write_schemas(tmp_path / "here")
    code = "import sys, pathlib, edge.schema as s; s.write_schemas(pathlib.Path(sys.argv[1]))"
    for seed in ("1", "2"):
        (tmp_path / seed).mkdir()
        command = [sys.executable, "-c", code, str(tmp_path / seed)]
        subprocess.run(command, env={"PYTHONHASHSEED": seed}, check=True)
        for path in (tmp_path / "here").iterdir():
            assert (tmp_path / seed / path.name).read_bytes() == path.read_bytes()


def ended(process):
    out, said = process.communicate(timeout=30)
    return process.returncode, out.decode(), said.decode()


def test_edge_schema_writes_all_or_nothing(tmp_path):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    out = tmp_path / "contract"
    status, printed, _ = ended(edge("schema", "--out", out, **pipes))
    assert status == 0
    names = {*(f"{kind}.schema.json" for kind in KINDS), "asyncapi.json"}
    assert {path.name for path in out.iterdir()} == names
    assert {line.rsplit("/")[-1] for line in printed.splitlines()} == names
    status, _, said = ended(edge("schema", "--out", out, **pipes))
    assert (status, "--force" in said) == (2, True)
    assert ended(edge("schema", "--out", out, "--force", **pipes))[0] == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    status, _, said = ended(edge("schema", "--out", tmp_path / "mine", "--force", **pipes))
    assert status == 2
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"
    assert {path.name for path in tmp_path.iterdir()} == {"contract", "mine"}


@needs_broker
def test_every_message_of_a_real_station_is_valid_and_delivered_as_documented(tmp_path):
    write_bundle(tmp_path / "bundle")
    write_squares(tmp_path / "rec", [40, 220, 40], without_sensor=[2])
    arrived = []
    with (
        running_broker(tmp_path / "broker") as broker,
        Link(BrokerAddress("127.0.0.1", broker.port), "plant") as link,
    ):
        link.open()
        link.subscribe(filter_for())
        monitor = f"[monitor]\nevery_s = 0.5\nport = {free_port()}"
        station = write_station(tmp_path, broker.port, broker=monitor)
        agents = [
            edge("agent", agent, "--station", station, stderr=subprocess.PIPE)
            for agent in ("inspector", "publisher", "monitor")
        ]
        try:
            _collect(link, arrived, agents)
        finally:
            for agent in agents:
                agent.terminate()
            for agent in agents:
                agent.communicate(timeout=20)
        _collect(link, arrived, (), seconds=1.0)
    for kind, received in arrived:
        VALIDATORS[kind].validate(json.loads(received.payload))
        assert received.qos == DELIVERIES[kind].qos, kind
    kinds = [kind for kind, _ in arrived]
    assert set(kinds) == set(KINDS)
    assert kinds.count("inspection") == 3
    healths = [json.loads(received.payload) for kind, received in arrived if kind == "health"]
    assert any(all(map(health.get, HEALTH_OF)) for health in healths), "each agent's part in one"


def _collect(link, arrived, agents, seconds=20.0):
    """Receive until three inspections, a whole health and the answer to a command are there."""
    deadline, asked = time.monotonic() + seconds, False
    while time.monotonic() < deadline and link.ended is None:
        link.step(0.1)
        for received in link.take_received():
            link.acknowledge(received)
            place, kind = station_and_kind(received.topic)
            arrived.append((kind, received))
            if kind == "inspection" and not asked and agents:
                asked = True
                found = json.loads(received.payload)["inspection_id"]
                command = Command(request_id="r1", inspection_id=found)
                link.publish(topic_of(place, "command"), encode(command), qos=1)
        kinds = [kind for kind, _ in arrived]
        whole_health = [
            received
            for kind, received in arrived
            if kind == "health" and all(map(json.loads(received.payload).get, HEALTH_OF))
        ]
        if agents and kinds.count("inspection") >= 3 and whole_health and "picture" in kinds:
            return
        dead = [agent for agent in agents if agent.poll() not in (None, 0)]
        assert not dead, dead[0].stderr.read().decode()
