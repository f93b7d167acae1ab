"""What was sent and not yet acknowledged: the publisher's rules, without a network.

Records leave in order of their sequence. The cursor stands before the oldest one that is not
settled, so that a crash resends a few records and never skips one.
"""

from __future__ import annotations

from collections import deque

from device_agents.mqtt.refusals import PROTOCOL_ENDS

_STRIKES = 2
_CLEAN_RUN = 100  # records through without trouble: whatever it was is over


class InFlight:
    """The records between the cursor and the last one sent, by sequence."""

    def __init__(self, acknowledged: int) -> None:
        self.last_sent = acknowledged
        self._unsettled: dict[int, int] = {}  # message id -> sequence, in the order of sending

    @property
    def acknowledged(self) -> int:
        """Every record up to here is settled."""
        return next(iter(self._unsettled.values())) - 1 if self._unsettled else self.last_sent

    @property
    def oldest(self) -> int | None:
        """The sequence of the oldest record that is not settled."""
        return next(iter(self._unsettled.values()), None)

    def __len__(self) -> int:
        return len(self._unsettled)

    def sent(self, sequence: int, message_id: int) -> None:
        """Note that a record left under `message_id`."""
        assert sequence > self.last_sent
        self.last_sent = sequence
        self._unsettled[message_id] = sequence

    def skip(self, sequence: int) -> None:
        """Note that a record was quarantined instead of sent."""
        assert sequence > self.last_sent
        self.last_sent = sequence

    def sequence_of(self, message_id: int) -> int | None:
        """Return which record left under `message_id`; None for any other message."""
        return self._unsettled.get(message_id)

    def settle(self, message_id: int) -> None:
        """Note that the record needs no sending any more."""
        self._unsettled.pop(message_id, None)

    def rewind(self) -> None:
        """The connection is gone: whatever is not settled is sent again, in order."""
        self.last_sent = self.acknowledged
        self._unsettled.clear()


class Distrust:
    """How far the broker has everything *on its disk*, if it saves every `seconds`.

    An acknowledgement says that the broker has the record, in memory at first; killed, it forgets
    what is younger. So the cursor follows when the broker was heard that much later. Our own clock
    proves nothing: a broker whose power is gone falls silent, and no packet tells us so.
    """

    def __init__(self, seconds: float, acknowledged: int) -> None:
        self._seconds = seconds
        self._safe = acknowledged
        self._marks: deque[tuple[float, int]] = deque()  # heard when, and acknowledged up to then

    def safe(self, acknowledged: int, heard_s: float) -> int:
        """Note how far the broker has acknowledged; return how far it is to be believed.

        `heard_s`: when the broker said something last, which is after it acknowledged this.
        """
        if not self._marks or self._marks[-1][1] != acknowledged:
            self._marks.append((heard_s, acknowledged))
        while self._marks and self._marks[0][0] <= heard_s - self._seconds:
            self._safe = self._marks.popleft()[1]
        return self._safe

    def rewind(self, acknowledged: int, heard_s: float) -> int:
        """The connection is gone: return from where on to send again."""
        safe = self.safe(acknowledged, heard_s)
        self._marks.clear()
        return safe


class Suspicion:
    """Finds the one record that makes the broker hang up, by sending one at a time.

    A broker over its size limit answers no PUBACK: it drops the connection, and would do so at
    every resend for ever. Two such ends with the same oldest record narrow the window to one;
    two more, alone on the line, convict the record.
    """

    def __init__(self) -> None:
        self._sequence: int | None = None
        self._strikes = 0
        self._settled_since = 0

    @property
    def narrow(self) -> bool:
        """Whether to send one record at a time."""
        return self._strikes >= _STRIKES

    def connection_ended(self, reason_code: int, oldest: int | None) -> int | None:
        """Return the sequence to quarantine, if the evidence is enough."""
        if reason_code not in PROTOCOL_ENDS or oldest is None:
            return None
        self._settled_since = 0
        if oldest != self._sequence:
            # Progress was made: the culprit is further on. A window of one stays narrow.
            self._sequence = oldest
            self._strikes = _STRIKES if self.narrow else 1
            return None
        self._strikes += 1
        if self._strikes < 2 * _STRIKES:
            return None
        self._sequence, self._strikes = None, 0
        return oldest

    def settled(self, sequence: int) -> None:
        """A record got through: a suspect is cleared, and after many the matter is dropped."""
        if sequence == self._sequence:
            self._sequence = None
        self._settled_since += 1
        if self._settled_since >= _CLEAN_RUN:
            self._sequence, self._strikes = None, 0
