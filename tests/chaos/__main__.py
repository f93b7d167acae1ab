"""`make chaos`: a station on many bad days in a row, and an independent judge.

    python -m tests.chaos --rounds 200            about 20 minutes
    python -m tests.chaos --rounds 11 --seed 4    every kind of event once

Each round does one thing at a random moment, under load: kill -9 of inspector, publisher or
broker, a link cut, unplugged or half open, a full disk, a restart of everything, and some of them
together. The judge (`tests.chaos.judge`) compares what a second process could read in the outbox
with what a subscriber received. Exit status 1 when a promise was broken, 3 without Mosquitto.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from tests.chaos.events import KINDS, Scene, deck, name_of
from tests.chaos.judge import Evidence, Judgement, judged
from tests.chaos.line import Line
from tests.chaos.witnesses import OutboxWitness, Subscriber, acknowledgements_into
from tests.proxy import LinkProxy

_BACK_WITHIN_S = 15.0  # an agent's start on a busy machine, or the longest back-off after cuts
_BACK = 5  # records through, and the round is over
_DRAINED_WITHIN_S = 90.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, help="the same bad days again, as far as timing allows")
    parser.add_argument("--minutes", type=float, help="stop after so long, whatever is left")
    parser.add_argument("--rate", type=float, default=100.0, help="parts per second")
    parser.add_argument("--only", choices=list(map(name_of, KINDS)), help="this kind, every round")
    parser.add_argument("--out", type=Path, help="write the counts here, as JSON")
    parser.add_argument("--keep", type=Path, help="keep logs and files in this new folder")
    arguments = parser.parse_args()
    if not (shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")):
        print("chaos: Mosquitto is not installed: NOTHING WAS PROVEN. apt-get install mosquitto")
        return 3
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and leave nothing running or mounted
    seed = random.randrange(1 << 31) if arguments.seed is None else arguments.seed
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(exist_ok=True)
        report = _storm(folder.resolve(), arguments, seed)
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if report["kept"] else 1


def _storm(folder: Path, arguments: argparse.Namespace, seed: int) -> dict:
    """Live through the rounds, heal everything, wait until it is quiet, and judge."""
    evidence = Evidence()
    line = Line(folder, arguments.rate)
    proxy = LinkProxy(line.broker_port, lambda: acknowledgements_into(evidence))
    try:
        line.start_broker()
        subscriber = Subscriber(line.broker_port, evidence)
        subscriber.connected.wait(10)  # what is sent before somebody listens, nobody misses
        witness = OutboxWitness(line.outbox, evidence)
        line.start(proxy.port)
        scene = Scene(line, proxy, subscriber, witness, random.Random(seed))
        if not line.disk.is_real:
            print("chaos: no right to mount a small disk: the FULL DISK IS NOT TRIED")
        facts = {"seed": seed, **_rounds(scene, arguments)}
        line.inspector.end()
        facts["drained"] = _wait_for(lambda: _is_drained(evidence), _DRAINED_WITHIN_S, 0.5)
        witness.close()
        subscriber.close()
    finally:
        line.close()
        proxy.close()
    facts["exits"] = {p.name: dict(p.exits) for p in line.processes if p.exits}
    facts["tracebacks"] = line.tracebacks()
    facts["nobody_listened"] = len(evidence.nobody_listened)
    facts["connections"] = proxy.accepted
    judgement = judged(evidence)
    kept = judgement.kept and not facts["tracebacks"]
    _say(facts, judgement)
    print("  " + ("kept" if kept else "BROKEN"))
    judged_facts = {**asdict(judgement), "unexplained": judgement.unexplained}
    return {**facts, **judged_facts, "counters": evidence.counters, "kept": kept}


def _rounds(scene: Scene, arguments: argparse.Namespace) -> dict:
    """Let one thing happen after the other; after each, records must come through again."""
    started = time.monotonic()
    acknowledged = scene.witness.evidence.acknowledged
    events: Counter[str] = Counter()
    slow: Counter[str] = Counter()
    _wait_for(lambda: scene.subscriber.count >= 20, 30)
    order = deck(scene.chance, arguments.rounds, disk=scene.line.disk.is_real, only=arguments.only)
    for number, event in enumerate(order, 1):
        if arguments.minutes and time.monotonic() - started > arguments.minutes * 60:
            break
        scene.pause(0.1, 1.5)
        event(scene)
        events[name_of(event)] += 1
        enough = len(acknowledged) + _BACK
        if not _wait_for(lambda: len(acknowledged) >= enough, _BACK_WITHIN_S):  # noqa: B023
            slow[name_of(event)] += 1
        if number % 20 == 0:
            seen = f"{scene.witness.seen} done, {scene.subscriber.count} received"
            print(f"  round {number}: {seen}", flush=True)
    return {
        "rounds": sum(events.values()),
        "seconds": round(time.monotonic() - started, 1),
        "events": dict(events),
        "slow": dict(slow),
        "disk_refused": scene.disk_refused,
    }


def _is_drained(evidence: Evidence) -> bool:
    """Whether every record seen done arrived, or is the broker's to answer for."""
    settled = {key for key, _, _ in tuple(evidence.received)} | set(evidence.acknowledged)
    return all(key in settled for key in tuple(evidence.done))


def _wait_for(is_so, within_s: float, every_s: float = 0.02) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if is_so():
            return True
        time.sleep(every_s)
    return bool(is_so())


def _say(facts: dict, j: Judgement) -> None:
    """Print the counts, one line a question."""
    events = ", ".join(f"{name} {count}" for name, count in sorted(facts["events"].items()))
    explained = ", ".join(f"{name} {count}" for name, count in sorted(j.explained.items()))
    twice = 100 * j.duplicates / max(1, j.received)
    print(
        f"chaos: seed {facts['seed']}, {facts['rounds']} rounds in {facts['seconds']:.0f} s "
        f"on {os.cpu_count()} cores, {facts['connections']} connections\n"
        f"  events        {events}\n"
        f"  full disk     stopped the records {facts['disk_refused']} times\n"
        f"  done          {j.done} records read in the outbox by a second process; {j.epochs} "
        f"epoch(s)\n"
        f"  acknowledged  {j.acknowledged} by the broker, as the link saw; to nobody "
        f"{facts['nobody_listened']}\n"
        f"  received      {j.received} distinct ({j.unseen} left the outbox unseen), "
        f"{j.duplicates} came again ({twice:.1f} %)\n"
        f"  lost          {len(j.lost)} by the station, {len(j.lost_by_broker)} by the broker "
        f"after its own PUBACK\n"
        f"  out of order  {j.out_of_order} after de-duplication by id\n"
        f"  changed       {j.changed} in content\n"
        f"  gaps          {j.gaps} numbers; counted by the station: {explained or 'none'}; "
        f"unexplained {j.unexplained}\n"
        f"  ended alone   {facts['exits'] or 'none'}; tracebacks {len(facts['tracebacks'])}\n"
        f"  slow          {facts['slow'] or 'no'} rounds without {_BACK} records acknowledged "
        f"within {_BACK_WITHIN_S:g} s; drained at the end: {facts['drained']}"
    )
    for name, why in (("LOST", j.lost), ("LOST BY THE BROKER", j.lost_by_broker)):
        if why:
            print(f"  {name}: " + ", ".join(f"{e[:8]}/{n}" for e, n in why[:20]))
    for line in facts["tracebacks"][:20]:
        print(f"  BUG {line}")


if __name__ == "__main__":
    sys.exit(main())
