"""What is drawn from a seed before a run begins: sizes, speeds and which faults there will be.

Everything is in here, so that a failure can print it and a test can change one thing of it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path

from controlplane.base.rand import SeededRand

__all__ = ["FAULTS", "Options", "draw", "past_failure"]

#: Every kind of fault there is, by the name that ``--without`` takes.
FAULTS = (
    "crash",  # kill -9 of one replica, mostly the leader
    "power",  # a crash takes the machine along, with what was not synced
    "ambush",  # all replicas at once, right after an acknowledgement
    "pause",  # SIGSTOP
    "break",  # connections break
    "cut",  # one direction between two replicas
    "isolate",  # one replica, both directions or one
    "leader",  # the same, of the leader
    "ring",  # each replica hears only its neighbours in a chain
    "flap",  # a link that breaks and heals, many times
    "deaf",  # clients do not hear a replica, or it does not hear them
    "eio",  # a sync fails, or any other operation of a disk
    "enospc",  # a disk is full for a while
    "rot",  # a bit of a stopped minority's log or snapshot flips
    "wall",  # the wall clock is set
    "transfer",  # leadership is handed over
    "members",  # members are added and removed
    "compact",  # history is forgotten
    "duplicate",  # frames come twice
)


@dataclass(frozen=True, slots=True)
class Options:
    """One run. Times in virtual seconds unless the name says otherwise."""

    size: int = 3
    faults: frozenset[str] = frozenset()
    faults_s: float = 5.0
    intensity_s: float = 0.3
    snapshot_entries: int = 1_000
    catch_up_entries: int = 9
    snapshot_chunk_bytes: int = 65_536
    catch_up_bytes_per_s: int = 64 << 20
    inflight_entries_max: int = 2
    delay_max_s: float = 0.005
    slow_share: float = 0.0
    sync_min_s: float = 0.0002
    sync_max_s: float = 0.004
    clients: int = 3
    watchers: int = 2
    lease_clients: int = 0
    #: Somebody also writes a history as of a real run. Not where history is forgotten, of which its rules know nothing.
    recorded: bool = False
    think_s: float = 0.05
    down_max_s: float = 0.5
    #: How many frames come twice, in runs where they do.
    duplicate_share: float = 0.1
    #: How often somebody puts the state back to what it was earlier. Not where a history is recorded: its rules know
    #: nothing of that.
    restores: int = 0
    #: How many users there are whose permissions come and go; 0: nobody turns authentication on. Not where the state is
    #: put back, users with it.
    users: int = 0
    #: Clients that read ranges, also of the past and from one replica alone.
    readers: int = 0
    #: Replicas compare their states' hashes.
    compared: bool = False
    #: How much history the replicas keep by themselves; 0: all of it.
    retention_s: float = 0.0
    #: Watchers use the Watch service's streams, not what the control plane uses inside a replica.
    streams: bool = False

    def line(self) -> str:
        """As text, for the report of a failure."""
        shown = {f.name: getattr(self, f.name) for f in fields(self)}
        shown["faults"] = ",".join(sorted(self.faults))
        return " ".join(f"{name}={value}" for name, value in shown.items())


def draw(seed: int) -> Options:
    """The options of a seed: the same for the same seed."""
    rand = SeededRand(f"options {seed}")

    def pick(*values: float) -> float:
        return values[rand.randint(0, len(values) - 1)]

    faults = {name for name in FAULTS if rand.random() < 0.4}
    if rand.random() < 0.5:
        faults.add("crash")
    if "members" in faults:
        faults.discard("rot")  # one replica fewer for good, and one that may never have come, are no majority of four
    options = Options(
        size=int(pick(3, 3, 3, 3, 5)),
        faults=frozenset(faults),
        faults_s=pick(2.5, 4.0),
        intensity_s=pick(0.1, 0.3, 0.6),
        snapshot_entries=int(pick(10, 20, 60, 1_000)),
        catch_up_entries=int(pick(1, 3, 9)),
        snapshot_chunk_bytes=int(pick(512, 65_536)),
        inflight_entries_max=int(pick(1, 2, 4)),
        delay_max_s=pick(0.001, 0.005, 0.03),
        slow_share=pick(0.0, 0.02, 0.1),
        sync_max_s=pick(0.001, 0.004, 0.04),
        clients=rand.randint(2, 5),
        watchers=rand.randint(1, 3),
        lease_clients=int(pick(0, 0, 1)),
        recorded="compact" not in faults and rand.random() < 0.4,
        think_s=pick(0.005, 0.03, 0.1),
        down_max_s=pick(0.2, 0.5, 1.5),
        duplicate_share=pick(0.02, 0.2, 0.5),
    )
    if not options.recorded and rand.random() < 0.25:
        options = replace(options, restores=rand.randint(1, 2))
    elif rand.random() < 0.25:
        options = replace(options, users=2)
    return replace(
        options,
        readers=rand.randint(0, 2),
        compared=rand.random() < 0.5,
        retention_s=pick(0.0, 0.5, 1.0) if "compact" in faults else 0.0,
        streams=rand.random() < 0.7,
    )


def past_failure(path: Path) -> tuple[int, Options]:
    """Seed and options of a file of the corpus. They are written out, so that a later :func:`draw` does not matter."""
    entry = json.loads(path.read_text(encoding="utf-8"))
    options = {**entry["options"], "faults": frozenset(entry["options"]["faults"])}
    return int(entry["seed"]), Options(**options)
