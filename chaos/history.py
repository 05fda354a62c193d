"""The history of a run: what clients asked and were told, what was broken when. JSON lines, written as it happens.

Owns the record types and the file format (version 1, in the first line). Every time is in nanoseconds of ONE monotonic
clock, that of the process which ran the load. Knows nothing of right and wrong: see ``checkers``.

Invariants: an operation is written once, when its outcome is known; a process has at most one operation outstanding
and gets a new name after an operation of unknown outcome, which therefore stays concurrent with all that follows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self, TextIO, get_args

from controlplane.base.clock import Clock
from controlplane.base.errors import ConfigError

__all__ = [
    "FORMAT_VERSION",
    "Event",
    "Header",
    "History",
    "Kind",
    "Listing",
    "Mark",
    "Op",
    "Outcome",
    "Recorder",
    "Row",
    "load",
]

FORMAT_VERSION: Final = 1

Kind = Literal["put", "get", "http"]
#: ok: it happened. fail: it did not, for certain. info: nobody knows.
Outcome = Literal["ok", "fail", "info"]


@dataclass(frozen=True, slots=True)
class Header:
    """The first line."""

    run: str
    prefix: str
    started_at: str
    endpoints: list[str]
    #: Where the state is: in our replicas, which apply a repeated write once, or in an etcd cluster, which does not.
    store: str = "embedded"
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True, slots=True)
class Op:
    """One operation of one client process.

    ``value`` is what was written, or what was read (None: the key was not there). ``revision`` is that of the reply's
    header: for a write its own, for a read the state it shows. ``mod_revision`` and ``version`` are the read key's.
    ``attempts_failed`` counts attempts of one HTTP request that had no answer, the last one included.
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
    to), ``final`` (the read-back at the end). Of the first two, ``segment`` is the part of the watch that follows."""

    reason: Literal["start", "relist", "final"]
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


@dataclass(slots=True)
class History:
    """A whole file, in memory."""

    header: Header
    ops: list[Op] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    listings: list[Listing] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    #: The last line was cut off: the run was killed.
    torn: bool = False

    def of_kind(self, *kinds: Kind) -> list[Op]:
        """Operations of these kinds."""
        return [op for op in self.ops if op.kind in kinds]


_FIELDS: Final = {kind: tuple(f.name for f in fields(kind)) for kind in (Header, Op, Event, Listing, Mark)}


class Recorder:
    """Writes a history file. Close it, or use it as a context manager."""

    def __init__(self, path: Path, header: Header, clock: Clock) -> None:
        self.path = path
        self._clock = clock
        # Line buffered: what a line says has happened, is in the file when this process is killed.
        self._file: TextIO = path.open("x", buffering=1, encoding="utf-8")
        self._next_id = 1
        self._put("header", header)

    def now_ns(self) -> int:
        """Now, on the clock of this history."""
        return int(self._clock.monotonic() * 1e9)

    def next_id(self) -> int:
        """A new operation's id."""
        self._next_id += 1
        return self._next_id - 1

    def op(self, op: Op) -> None:
        """An operation ended."""
        self._put("op", op)

    def event(self, event: Event) -> None:
        """The watcher was told of a change."""
        self._put("event", event)

    def listing(self, listing: Listing) -> None:
        """Every key was listed."""
        self._put("listing", listing)

    def mark(self, act: str, n: int, name: str, **detail: Any) -> Mark:
        """Something was done, or seen, now."""
        mark = Mark(act, n, name, self.now_ns(), detail)
        self._put("mark", mark)
        return mark

    def _put(self, kind: str, record: Header | Op | Event | Listing | Mark) -> None:
        # Not dataclasses.asdict: it copies deeply, and a listing of thousands of rows must not hold up the load.
        line: dict[str, Any] = {"t": kind}
        for name in _FIELDS[type(record)]:
            value = getattr(record, name)
            if value is not None:
                line[name] = value
        if isinstance(record, Listing):
            line["rows"] = [
                (row.key, row.value, row.create_revision, row.mod_revision, row.version) for row in record.rows
            ]
        self._file.write(json.dumps(line, separators=(",", ":")) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load(path: Path) -> History:
    """Read a history file.

    Raises:
        ConfigError: it is no history, of another format version, or damaged before its last line; says which line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    if not lines:
        raise ConfigError(f"{path} is empty, not a history")
    history = History(_header(path, lines[0]))
    for number, line in enumerate(lines[1:], start=2):
        try:
            _add(history, json.loads(line))
        except (KeyError, TypeError, ValueError) as error:
            if number == len(lines) and not line.endswith("\n"):
                history.torn = True
                break
            raise ConfigError(f"{path}, line {number}: {error}") from error
    return history


def _header(path: Path, line: str) -> Header:
    try:
        raw = json.loads(line)
        if raw.pop("t") != "header":
            raise ValueError("the first line is no header")
        if raw.get("format_version") != FORMAT_VERSION:
            raise ConfigError(
                f"{path}: format version {raw.get('format_version')}, this program reads {FORMAT_VERSION}"
            )
        return Header(**raw)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} is not a history: {error}") from error


def _add(history: History, raw: dict[str, Any]) -> None:
    kind = raw.pop("t")
    if kind == "op":
        if raw["kind"] not in get_args(Kind) or raw["outcome"] not in get_args(Outcome):
            raise ValueError(f"an operation of kind {raw['kind']!r} and outcome {raw['outcome']!r}")
        history.ops.append(Op(**raw))
    elif kind == "event":
        history.events.append(Event(**raw))
    elif kind == "listing":
        rows: Iterable[list[Any]] = raw.pop("rows")
        history.listings.append(Listing(**raw, rows=[Row(*row) for row in rows]))
    elif kind == "mark":
        history.marks.append(Mark(**raw))
    else:
        raise ValueError(f"a record of kind {kind!r}")
