"""Which kind of source an entry of the station file is: the one place that chooses."""

from __future__ import annotations

from device_agents.parts import PartSource
from device_agents.sources.live import LiveSource
from device_agents.sources.playback import Playback
from device_agents.station import Source
from edge.model_spec import ModelSpec


def source_from(name: str, source: Source, spec: ModelSpec, *, paced: bool) -> PartSource:
    """Return the source, checked against the model before its first part.

    `paced` is for recordings: each part at its time, or all at once. Raises InputError where the
    source does not fit the model, MachineError where this machine lacks what it takes.
    """
    if source.recording is not None:
        return Playback(source, spec, paced=paced, name=name)
    return LiveSource(name, source, spec)
