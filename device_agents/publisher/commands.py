"""What a consumer may ask of the station: the door for bytes from the network.

A `Command` comes on the station's own topic. Whatever else comes there is refused and counted:
nothing in it is trusted, no part of it reaches a file name unchecked, and none of it can fill
memory.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from device_agents.outbox.kept_part import is_safe_id
from edge.messages import Command, UnreadableMessage, decode

LARGEST_COMMAND_BYTES = 4096
MOST_WAITING = 8  # commands; more are refused until one is answered
_LONGEST_REASON = 200  # characters


@dataclass(frozen=True)
class Refused:
    """A command that gets no answer, and why."""

    why: str


def command_from(payload: bytes, *, retained: bool = False) -> Command | Refused:
    """Read a command, or say why it is none. Never raises."""
    if retained:
        # It would be answered again at every connection, for ever.
        return Refused("it was retained: publish commands without the retain flag")
    if len(payload) > LARGEST_COMMAND_BYTES:
        return Refused(f"{len(payload)} bytes, and {LARGEST_COMMAND_BYTES} are the most")
    try:
        command = decode(payload, Command)
    except UnreadableMessage as error:
        return Refused(_printable(str(error)))
    if not is_safe_id(command.inspection_id):
        return Refused("an inspection_id that no station gives")
    return command if command.want else Refused("nothing wanted")


class Waiting:
    """The commands that wait for their answers: at most `MOST_WAITING`, in order."""

    def __init__(self) -> None:
        self._commands: deque[Command] = deque()

    def __len__(self) -> int:
        return len(self._commands)

    def add(self, command: Command) -> Refused | None:
        """Take the command in, or say that too many wait."""
        if len(self._commands) >= MOST_WAITING:
            return Refused(f"{MOST_WAITING} commands wait already")
        self._commands.append(command)
        return None

    def next(self) -> Command | None:
        """Return the oldest and forget it."""
        return self._commands.popleft() if self._commands else None


def _printable(text: str) -> str:
    return "".join(sign if sign.isprintable() else "?" for sign in text)[:_LONGEST_REASON]
