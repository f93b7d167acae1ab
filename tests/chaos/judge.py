"""The judge: what was seen done against what was received. Pure rules; it knows no product code.

Three witnesses, none of which asks the station how it is doing:

- `done`: every record that a second process could read in the outbox, hence committed there;
- `acknowledged`: every record whose PUBACK left the broker, as the link between them saw it;
- `received`: what a subscriber got, in the order of arrival.

A record is known by (epoch, sequence) and a digest of its bytes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

Key = tuple[str, int]  # station_epoch, sequence
EXPLAINS = ("lost_disk", "dropped_pass", "dropped_defect", "quarantined")


@dataclass
class Evidence:
    """What the witnesses saw. Written by their threads, read when all of them have ended."""

    done: dict[Key, str] = field(default_factory=dict)
    acknowledged: set[Key] = field(default_factory=set)
    nobody_listened: set[Key] = field(default_factory=set)  # PUBACK 0x10
    received: list[tuple[Key, str, str]] = field(default_factory=list)  # key, id, digest
    counters: dict[str, dict[str, int]] = field(default_factory=dict)  # by epoch, at the end


@dataclass
class Judgement:
    """What the evidence comes to."""

    done: int
    acknowledged: int
    received: int  # distinct by inspection_id
    unseen: int  # received, though gone from the outbox before the witness looked
    duplicates: int
    lost: list[Key]  # done, and neither received nor taken over by the broker
    lost_by_broker: list[Key]  # done, acknowledged by the broker, and never received
    out_of_order: int  # after de-duplication
    changed: int  # one id with two contents, or other bytes than in the outbox
    gaps: int  # numbers that no consumer will ever see
    explained: dict[str, int]  # what the station counted as lost, by name
    epochs: int

    @property
    def unexplained(self) -> int:
        """Gaps beyond what the station counted and what the broker forgot."""
        ours = self.gaps - len(self.lost_by_broker)
        return max(0, ours - sum(self.explained.values()))

    @property
    def kept(self) -> bool:
        """Whether the station kept its promises, and something was there to keep."""
        wrong = len(self.lost) + self.out_of_order + self.changed + self.unexplained
        return wrong == 0 and self.done > 0 and self.received > 0


def judged(evidence: Evidence) -> Judgement:
    """Compare what was done with what was received."""
    first_digest: dict[str, str] = {}
    highest: dict[str, int] = {}
    arrived: set[Key] = set()
    duplicates = out_of_order = changed = 0
    for key, inspection_id, digest in evidence.received:
        if inspection_id in first_digest:
            duplicates += 1
            changed += first_digest[inspection_id] != digest
            continue
        first_digest[inspection_id] = digest
        epoch, sequence = key
        out_of_order += sequence < highest.get(epoch, 0)
        highest[epoch] = max(sequence, highest.get(epoch, 0))
        changed += key in arrived  # one number under two ids
        changed += evidence.done.get(key, digest) != digest
        arrived.add(key)
    missing = sorted(key for key in evidence.done if key not in arrived)
    forgotten = [key for key in missing if key in evidence.acknowledged]
    return Judgement(
        done=len(evidence.done),
        acknowledged=len(evidence.acknowledged),
        received=len(first_digest),
        unseen=len(arrived - evidence.done.keys()),
        duplicates=duplicates,
        lost=[key for key in missing if key not in evidence.acknowledged],
        lost_by_broker=forgotten,
        out_of_order=out_of_order,
        changed=changed,
        gaps=_gaps(arrived | evidence.done.keys(), arrived),
        explained=_explained(evidence.counters),
        epochs=len({epoch for epoch, _ in arrived | evidence.done.keys()}),
    )


def _gaps(known: set[Key], arrived: set[Key]) -> int:
    """Count the numbers from 1 to the highest known of each epoch that never arrived."""
    highest: dict[str, int] = {}
    for epoch, sequence in known:
        highest[epoch] = max(sequence, highest.get(epoch, 0))
    return sum(highest.values()) - len(arrived)


def _explained(counters: dict[str, dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for of_epoch in counters.values():
        total.update({name: of_epoch[name] for name in EXPLAINS if of_epoch.get(name)})
    return dict(total)
