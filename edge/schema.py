"""The contract as documents: JSON Schema (2020-12) of each message, and one AsyncAPI 3.0 document.

Everything is read from `edge.messages` and `edge.topics`, so that the documents cannot say
anything else than the code does. Schemas leave unknown fields alone: a consumer that was made from
them keeps working when a field is added.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from edge.examples import EXAMPLES, STATION
from edge.messages import KIND_TYPES, SCHEMA, encode
from edge.topics import DELIVERIES, KINDS, ROOT

ASYNCAPI_FILE = "asyncapi.json"
_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_MQTT_BINDING = "0.2.0"
_LEVELS = {
    "site": "The plant.",
    "area": "The area of the plant.",
    "line": "The production line.",
    "station": "The inspection station on the line.",
}
_TITLES = {
    "inspection": "one for each part",
    "presence": "retained, and the station's last will",
    "health": "every few seconds",
    "picture": "by rule, or as the answer to a command",
    "command": "to the station: send the pictures of one inspection",
}
Document = dict[str, Any]


def write_schemas(folder: Path) -> list[str]:
    """Write every document into `folder`; return the file names. The bytes are always the same."""
    documents = {f"{kind}.schema.json": json_schema_of(kind) for kind in KINDS}
    documents[ASYNCAPI_FILE] = asyncapi_document()
    for name, document in documents.items():
        text = json.dumps(document, indent=2, ensure_ascii=False)
        (folder / name).write_text(text + "\n", encoding="utf-8")
    return list(documents)


def json_schema_of(kind: str) -> Document:
    """Return the schema of one kind of message, complete in itself."""
    definitions = _definitions("#/$defs/{name}", kind)
    whole = definitions.pop(KIND_TYPES[kind].__name__)
    identity = f"urn:{ROOT.replace('/', ':')}:{kind}"
    return {"$schema": _DIALECT, "$id": identity, **whole, "$defs": definitions}


def asyncapi_document() -> Document:
    """Return the AsyncAPI 3.0 document, from the station's point of view."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "orin-inspect stations",
            "version": f"{SCHEMA}.0.0",
            "description": "What an inspection station says over MQTT 5, and what it listens to. "
            "De-duplicate inspections by `inspection_id`: delivery is at least once. Within one "
            "`station_epoch` the `sequence` counts from 1, so a gap is a loss that you can see.",
            "license": {
                "name": "Apache-2.0",
                "url": "https://www.apache.org/licenses/LICENSE-2.0",
            },
        },
        "defaultContentType": "application/json",
        "servers": _servers(),
        "channels": {kind: _channel(kind) for kind in KINDS},
        "operations": dict(map(_operation, KINDS)),
        "components": {
            "messages": {kind: _message(kind) for kind in KINDS},
            "parameters": {
                level: {"description": meaning, "examples": [getattr(STATION, level)]}
                for level, meaning in _LEVELS.items()
            },
            "schemas": _definitions("#/components/schemas/{name}", *KINDS),
            "securitySchemes": {
                "password": {
                    "type": "userPassword",
                    "description": "User name and password of the broker.",
                },
                "certificate": {
                    "type": "X509",
                    "description": "A certificate of the client's own (mutual TLS).",
                },
            },
        },
    }


def _definitions(ref_template: str, *kinds: str) -> Document:
    """Return the schemas of these kinds and of what they are made of, by name."""
    types = [KIND_TYPES[kind] for kind in kinds]
    _, found = msgspec.json.schema_components(types, ref_template=ref_template)
    for kind in types:
        # It has a default where messages are made; where they are read it must be there.
        found[kind.__name__]["required"].append("schema")
    return dict(sorted(found.items()))


def _ref(*path: str) -> Document:
    return {"$ref": "#/" + "/".join(path)}


def _servers() -> Document:
    presence = DELIVERIES["presence"]
    will = {"topic": _address("presence"), "qos": presence.qos, "retain": presence.retain}
    common = {
        "protocolVersion": "5.0",
        "variables": {"host": {"description": "The plant's broker.", "default": "broker.local"}},
        "bindings": {"mqtt": {"lastWill": will, "bindingVersion": _MQTT_BINDING}},
    }
    password = _ref("components", "securitySchemes", "password")
    certificate = _ref("components", "securitySchemes", "certificate")
    return {
        "plain": {
            "host": "{host}:1883",
            "protocol": "mqtt",
            "description": "In clear: for a network of its own.",
            "security": [password],
            **common,
        },
        "tls": {
            "host": "{host}:8883",
            "protocol": "secure-mqtt",
            "description": "TLS 1.2 or newer; the station checks the broker's certificate, and "
            "shows its own where the broker asks for one.",
            "security": [password, certificate],
            **common,
        },
    }


def _address(kind: str) -> str:
    return "/".join([ROOT, *(f"{{{level}}}" for level in _LEVELS), kind])


def _channel(kind: str) -> Document:
    return {
        "address": _address(kind),
        "title": f"{kind}: {_TITLES[kind]}",
        "messages": {kind: _ref("components", "messages", kind)},
        "parameters": {level: _ref("components", "parameters", level) for level in _LEVELS},
    }


def _operation(kind: str) -> tuple[str, Document]:
    delivery = DELIVERIES[kind]
    action = "receive" if delivery.to_station else "send"
    operation = {
        "action": action,
        "channel": _ref("channels", kind),
        "title": f"{action} {kind}",
        "messages": [_ref("channels", kind, "messages", kind)],
        "bindings": {
            "mqtt": {
                "qos": delivery.qos,
                "retain": delivery.retain,
                "bindingVersion": _MQTT_BINDING,
            }
        },
    }
    if kind == "command":
        operation["reply"] = {
            "channel": _ref("channels", "picture"),
            "messages": [_ref("channels", "picture", "messages", "picture")],
        }
    return f"{action}{kind.capitalize()}", operation


def _message(kind: str) -> Document:
    name = KIND_TYPES[kind].__name__
    message = {
        "name": name,
        "title": name,
        "summary": (KIND_TYPES[kind].__doc__ or "").strip(),
        "contentType": "application/json",
        "payload": _ref("components", "schemas", name),
        "examples": [
            {
                "name": example.name,
                "summary": example.summary,
                "payload": json.loads(encode(example.message)),
            }
            for example in EXAMPLES[kind]
        ],
    }
    if kind in ("command", "picture"):
        message["correlationId"] = {
            "description": "Joins a command and its answers.",
            "location": "$message.payload#/request_id",
        }
    return message
