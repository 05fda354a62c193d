"""The history of a run: what clients asked and were told, what was broken when. JSON lines, written as it happens.

Owns the file format (version 1, in the first line) of the records in ``records``. Knows nothing of right and wrong: see
``checkers``. docs/verdicts.md describes the format for those who write histories of other systems.

Invariants: an operation is written once, when its outcome is known; a process has at most one operation outstanding
and gets a new name after an operation of unknown outcome, which therefore stays concurrent with all that follows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TextIO, get_args

from chaos.records import (
    FORMAT_VERSION,
    Change,
    Event,
    Header,
    History,
    Hold,
    Kind,
    Listing,
    Mark,
    NodeSeen,
    Op,
    Outcome,
    PodSeen,
    ProcessSeen,
    Row,
    Told,
)
from controlplane.base.clock import Clock
from controlplane.base.errors import ConfigError

__all__ = ["Recorder", "load"]

_Record = Header | Op | Event | Listing | Mark | Told | Hold | PodSeen | ProcessSeen | NodeSeen
#: Of each kind its fields, with their defaults: those are not written.
_FIELDS: Final = {
    kind: tuple((f.name, f.default if f.default_factory is MISSING else MISSING) for f in fields(kind))
    for kind in (Header, Op, Event, Listing, Mark, Told, Hold, PodSeen, ProcessSeen, NodeSeen)
}
_ALWAYS: Final = frozenset({"format_version", "revision"})
#: Kinds of lines that are one record as it is.
_PLAIN: Final[Mapping[str, tuple[type[Any], str]]] = {
    "event": (Event, "events"),
    "mark": (Mark, "marks"),
    "hold": (Hold, "holds"),
    "pod": (PodSeen, "pods"),
    "process": (ProcessSeen, "processes"),
    "node": (NodeSeen, "nodes"),
}


class Recorder:
    """Writes a history file. Close it, or use it as a context manager."""

    def __init__(self, path: Path, header: Header, clock: Clock) -> None:
        self.path = path
        self._clock = clock
        # Line buffered: what a line says has happened, is in the file when this process is killed.
        self._file: TextIO = path.open("x", buffering=1, encoding="utf-8")
        self._next_id = 1
        self.header = replace(header, anchor_ns=self.now_ns(), anchor_wall_ms=clock.wall_ms())
        self._put("header", self.header)

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

    def told(self, told: Told) -> None:
        """A watcher had a response."""
        self._put("told", told)

    def hold(self, hold: Hold) -> None:
        """A client no longer believes that it holds a lock."""
        self._put("hold", hold)

    def pod(self, pod: PodSeen) -> None:
        """The API says something new of a pod."""
        self._put("pod", pod)

    def process(self, process: ProcessSeen) -> None:
        """A pod's process began or ended."""
        self._put("process", process)

    def node(self, node: NodeSeen) -> None:
        """Something new is known of a node."""
        self._put("node", node)

    def _put(self, kind: str, record: _Record) -> None:
        # Not dataclasses.asdict: it copies deeply, and a listing of thousands of rows must not hold up the load.
        line: dict[str, Any] = {"t": kind}
        for name, default in _FIELDS[type(record)]:
            value = getattr(record, name)
            if name in _ALWAYS or (value is not None and value != default):
                line[name] = value
        if isinstance(record, Listing):
            line["rows"] = [
                (row.key, row.value, row.create_revision, row.mod_revision, row.version) for row in record.rows
            ]
        elif isinstance(record, Told) and record.changes:
            line["changes"] = [
                (c.key, c.value, c.create_revision, c.mod_revision, c.version, c.was, c.was_revision)
                for c in record.changes
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
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
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
        history.ops.append(_op(raw))
    elif kind == "listing":
        rows: Iterable[list[Any]] = raw.pop("rows")
        history.listings.append(Listing(**raw, rows=[Row(*row) for row in rows]))
    elif kind == "told":
        changes: Iterable[list[Any]] = raw.pop("changes", ())
        history.told.append(Told(**raw, changes=[Change(*change) for change in changes]))
    elif kind in _PLAIN:
        of, where = _PLAIN[kind]
        getattr(history, where).append(of(**raw))
    else:
        raise ValueError(f"a record of kind {kind!r}")


_KINDS: Final = frozenset(get_args(Kind))
_OUTCOMES: Final = frozenset(get_args(Outcome))


def _op(raw: dict[str, Any]) -> Op:
    if raw["kind"] not in _KINDS or raw["outcome"] not in _OUTCOMES:
        raise ValueError(f"an operation of kind {raw['kind']!r} and outcome {raw['outcome']!r}")
    for name in ("compares", "then", "otherwise", "results"):
        if name in raw:
            raw[name] = tuple(None if item is None else tuple(item) for item in raw[name])
    return Op(**raw)
