"""What the doctor checks, in order: what comes first is what the later ones stand on."""

from __future__ import annotations

from device_agents.doctor.broker import look_at_broker
from device_agents.doctor.diagnosis import Check
from device_agents.doctor.gpu import look_at_gpu
from device_agents.doctor.machine import (
    look_at_agents,
    look_at_clock,
    look_at_disk,
    look_at_outbox,
    look_at_port,
    look_at_rights,
)
from device_agents.doctor.model import (
    look_at_bundle,
    look_at_engine,
    look_at_reference,
    look_at_sources,
)

CHECKS = (
    Check("disk", look_at_disk),
    Check("outbox", look_at_outbox),
    Check("clock", look_at_clock),
    Check("rights", look_at_rights),
    Check("agents", look_at_agents),
    Check("bundle", look_at_bundle, within_s=60.0),
    Check("gpu", look_at_gpu),
    Check("engine", look_at_engine, within_s=120.0),
    Check("drift", look_at_reference),
    Check("sources", look_at_sources, within_s=30.0),
    Check("broker", look_at_broker, within_s=20.0),
    Check("monitor port", look_at_port),
)
