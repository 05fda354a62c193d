"""What a history is made of: operations, events, listings, responses of watches, marks. Values only.

Record kinds and fields are only ever added, each with a default, so that what was written before stays readable. Every
time is in nanoseconds of ONE monotonic clock, that of the process which ran the load.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

__all__ = [
    "FORMAT_VERSION",
    "KEYED",
    "WRITES",
    "Change",
    "Compare",
    "Event",
    "Header",
    "History",
    "Hold",
    "Kind",
    "Listing",
    "Mark",
    "NodeSeen",
    "Op",
    "Outcome",
    "PodSeen",
    "ProcessSeen",
    "Row",
    "Seen",
    "Step",
    "Told",
]

FORMAT_VERSION: Final = 1

Kind = Literal["put", "get", "http", "delete", "txn", "grant", "keepalive", "revoke", "compact"]
#: Operations on keys, and those of them that may write.
KEYED: Final = frozenset({"put", "get", "delete", "txn"})
WRITES: Final = frozenset({"put", "delete", "txn"})
#: ok: it happened. fail: it did not, for certain. info: nobody knows.
Outcome = Literal["ok", "fail", "info"]
#: What a transaction compares for equality: (key, of what, with what). A key that is not there has 0 for its numbers.
Compare = tuple[str, Literal["value", "create", "mod", "version"], "str | int"]
#: A step of a transaction's branch: ("get", key), ("put", key, value) or ("delete", key).
Step = tuple[str, ...]
#: What a get saw: (value, create revision, mod revision, version); None: no such key.
Seen = tuple[str, int, int, int]


@dataclass(frozen=True, slots=True)
class Header:
    """The first line."""

    run: str
    prefix: str
    started_at: str
    endpoints: list[str]
    #: Where the state is: in our replicas, which apply a repeated write once, or in an etcd cluster, which does not.
    store: str = "embedded"
    #: Names of keys that several clients fight over, locks, and keys with leases; empty: there are none.
    shared_prefix: str = ""
    #: One moment on both clocks: the recorder's monotonic one and the wall's. 0: not recorded.
    anchor_ns: int = 0
    anchor_wall_ms: int = 0
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True, slots=True)
class Op:
    """One operation of one client process.

    ``value`` is what was written, or what was read (None: the key was not there). ``revision`` is that of the reply's
    header: for a write its own, for a read the state it shows. ``mod_revision`` and ``version`` are the read key's.
    ``attempts_failed`` counts attempts of one HTTP request that had no answer, the last one included.

    ``part`` is the part of the load: ``kv`` writes every key once, ``txn`` and ``append`` fight over few, ``lease``
    and ``lock`` say what they are. A ``delete`` has no ``value``. A ``txn`` has ``compares``, two branches, and, when
    its outcome is known, ``succeeded`` (of a delete: whether there was anything to delete) and the ``results`` of the
    branch that was taken: for a get what it saw, for others None. ``serializable`` reads may be old, not wrong.
    ``member`` and ``term`` are those of the reply's header. ``lease`` is the lease granted, renewed, revoked, or
    attached to the key, ``ttl_s`` the time it was promised (0: it is gone). ``asked`` is the revision that a compaction
    asked for.
    """

    id: int
    process: str
    kind: Kind
    endpoint: str
    key: str
    call_ns: int
    return_ns: int
    outcome: Outcome
    value: str | None = None
    revision: int = 0
    mod_revision: int = 0
    version: int = 0
    attempts_failed: int = 0
    error: str = ""
    part: str = "kv"
    create_revision: int = 0
    serializable: bool = False
    member: str = ""
    term: int = 0
    lease: int = 0
    ttl_s: int = 0
    asked: int = 0
    succeeded: bool | None = None
    compares: Sequence[Compare] = ()
    then: Sequence[Step] = ()
    otherwise: Sequence[Step] = ()
    results: Sequence[Seen | None] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """One change that the watcher was told of."""

    segment: int
    key: str
    value: str
    revision: int
    version: int
    received_ns: int


@dataclass(frozen=True, slots=True)
class Row:
    """One key of a listing."""

    key: str
    value: str
    create_revision: int
    mod_revision: int
    version: int


@dataclass(frozen=True, slots=True)
class Listing:
    """Every key under the prefix at one revision. ``reason``: ``start`` (the watcher begins), ``relist`` (it was told
    to), ``final`` (the read-back at the end), ``shared`` (the same, of the shared prefix). Of the first two,
    ``segment`` is the part of the watch that follows."""

    reason: Literal["start", "relist", "final", "shared"]
    segment: int
    revision: int
    at_ns: int
    rows: list[Row]


@dataclass(frozen=True, slots=True)
class Mark:
    """Something done to the cluster, or seen of it. ``act`` names the act and ``n`` its repetition, from 1."""

    act: str
    n: int
    name: str
    at_ns: int
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Change:
    """One event of a watch response. ``value`` is None if the key was deleted. ``was`` and ``was_revision`` are what
    the event said the key had been, with its mod revision; None and 0: it said nothing."""

    key: str
    value: str | None
    create_revision: int
    mod_revision: int
    version: int
    was: str | None = None
    was_revision: int = 0


@dataclass(frozen=True, slots=True)
class Told:
    """One response of one watch. ``watch`` names the watcher, ``segment`` counts its watches, from 1; the first
    response of each is ``created`` and says what was asked: of a ``prefix`` (or a ``single`` key), from which revision
    (0: from then on), whether it wants to know what was before, and whether it ends before the run does (``brief``).
    ``revision`` is the header's; ``progress``: it promises that everything up to there has come."""

    watch: str
    segment: int
    received_ns: int
    revision: int
    changes: Sequence[Change] = ()
    created: bool = False
    prefix: str = ""
    single: bool = False
    start_revision: int = 0
    prev_kv: bool = False
    brief: bool = False
    progress: bool = False
    canceled: bool = False
    compact_revision: int = 0


@dataclass(frozen=True, slots=True)
class Hold:
    """A client believed for that time that it held a lock. ``token``: the lock key's create revision."""

    process: str
    key: str
    token: int
    lease: int
    from_ns: int
    until_ns: int


@dataclass(frozen=True, slots=True)
class PodSeen:
    """What the API says of a pod of a workload, when that changed. ``gone``: there is no such pod any more."""

    at_ns: int
    workload: str
    uid: str
    name: str
    node: str = ""
    ready: bool = False
    deleting: bool = False
    restarts: int = 0
    gone: bool = False


@dataclass(frozen=True, slots=True)
class ProcessSeen:
    """A pod's process on a node began, or ended, as the machine says, whatever the API says."""

    at_ns: int
    workload: str
    uid: str
    node: str
    running: bool


@dataclass(frozen=True, slots=True)
class NodeSeen:
    """What became known of a node. ``heard``: its agent, asked directly, has a session with a replica; if not, it was
    last heard at ``since_ns`` or later. ``condemned``: the API says that its pods must go."""

    at_ns: int
    node: str
    heard: bool = False
    since_ns: int = 0
    condemned: bool = False


@dataclass(slots=True)
class History:
    """A whole file, in memory."""

    header: Header
    ops: list[Op] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    listings: list[Listing] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    holds: list[Hold] = field(default_factory=list)
    pods: list[PodSeen] = field(default_factory=list)
    processes: list[ProcessSeen] = field(default_factory=list)
    nodes: list[NodeSeen] = field(default_factory=list)
    #: The last line was cut off: the run was killed.
    torn: bool = False

    def of_kind(self, *kinds: Kind) -> list[Op]:
        """Operations of these kinds."""
        return [op for op in self.ops if op.kind in kinds]

    def of_part(self, *parts: str) -> list[Op]:
        """Operations of these parts of the load."""
        return [op for op in self.ops if op.part in parts]
