"""Histories of shared keys made by hand: a store that does everything right, to be damaged one way at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from chaos.checkers import check_all
from chaos.findings import Finding, Verdict
from chaos.records import Change, Compare, Header, History, Hold, Listing, Op, Outcome, Row, Seen, Step, Told

SECOND = 1_000_000_000
MS = 1_000_000
BASE = "/chaos/test-shared/"


@dataclass
class Contest:
    """One operation after the other, each told at once to a watch of everything, which knows what was before."""

    ops: list[Op] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    holds: list[Hold] = field(default_factory=list)
    rows: dict[str, Row] = field(default_factory=dict)
    revision: int = 10
    now_ns: int = SECOND
    term: int = 2

    def __post_init__(self) -> None:
        self.told.append(
            Told("all", 1, self.now_ns, self.revision, created=True, prefix=BASE, start_revision=11, prev_kv=True)
        )

    # -- operations; 10 ms each ---------------------------------------------------------------------------------

    def put(
        self, key: str, value: str, *, outcome: Outcome = "ok", applied: bool = True, part: str = "txn", lease: int = 0
    ) -> Op:
        if applied:
            self._apply({BASE + key: value})
        return self._done("put", key, outcome, part, value=value, lease=lease)

    def delete(self, key: str, *, outcome: Outcome = "ok", applied: bool = True) -> Op:
        there = BASE + key in self.rows
        if applied and there:
            self._apply({BASE + key: None})
        return self._done("delete", key, outcome, "txn", succeeded=there)

    def get(self, key: str, *, part: str = "txn", serializable: bool = False) -> Op:
        row = self.rows.get(BASE + key)
        seen = {
            "value": row.value, "create_revision": row.create_revision, "mod_revision": row.mod_revision,
            "version": row.version,
        } if row else {}  # fmt: skip
        return self._done("get", key, "ok", part, serializable=serializable, **seen)

    def txn(
        self, compares: Sequence[tuple[str, str, Any]], then: Sequence[Step], otherwise: Sequence[Step] = (), *,
        outcome: Outcome = "ok", applied: bool = True, part: str = "txn",
    ) -> Op:  # fmt: skip
        full: list[Compare] = [(BASE + key, what, wanted) for key, what, wanted in compares]  # type: ignore[misc]
        succeeded = all(self._part(key, what) == wanted for key, what, wanted in full)
        branches = [tuple((step[0], BASE + step[1], *step[2:]) for step in branch) for branch in (then, otherwise)]
        taken = branches[0] if succeeded else branches[1]
        results = [self._seen(step[1]) if step[0] == "get" else None for step in taken]
        writes = {step[1]: step[2] for step in taken if step[0] == "put"}
        if applied and writes:
            self._apply(dict(writes))
        key = compares[0][0] if compares else then[0][1]
        known: dict[str, Any] = {"succeeded": succeeded, "results": results} if outcome == "ok" else {}
        return self._done("txn", key, outcome, part, compares=full, then=branches[0], otherwise=branches[1], **known)

    def swap(self, key: str, expected: str | None, value: str) -> Op:
        compare = (key, "create", 0) if expected is None else (key, "value", expected)
        return self.txn([compare], [("put", key, value)], [("get", key)])

    def append(self, element: str, *keys: str, **more: Any) -> Op:
        """Reads the lists in one transaction, appends in the next."""
        read = self.txn([], [("get", key) for key in keys], part="append")
        compares: list[tuple[str, str, Any]] = []
        puts: list[Step] = []
        for key, seen in zip(keys, read.results, strict=True):
            compares.append((key, "mod", seen[2] if seen else 0))
            puts.append(("put", key, f"{seen[0] if seen else ''} {element}".strip()))
        return self.txn(compares, puts, part="append", **more)

    def lease_op(self, kind: Any, lease: int, *, ttl_s: int = 2, outcome: Outcome = "ok") -> Op:
        return self._done(kind, "", outcome, "lease", lease=lease, ttl_s=ttl_s)

    def expire(self, *keys: str) -> None:
        """A lease's keys go, now."""
        self._apply({BASE + key: None for key in keys})

    def wait(self, seconds: float) -> None:
        self.now_ns += int(seconds * SECOND)

    def progress(self) -> None:
        self.told.append(Told("all", 1, self.now_ns, self.revision, progress=True))

    def history(self) -> History:
        listing = Listing("shared", 0, self.revision, self.now_ns, list(self.rows.values()))
        return History(
            Header("test", "/chaos/test/", "now", ["e1"], shared_prefix=BASE),
            ops=list(self.ops), listings=[listing], told=list(self.told), holds=list(self.holds),
        )  # fmt: skip

    # -- inside ---------------------------------------------------------------------------------------------------

    def _apply(self, writes: dict[str, str | None]) -> None:
        self.revision += 1
        changes = []
        for key, value in writes.items():
            was = self.rows.pop(key, None)
            before = (was.value, was.mod_revision) if was else (None, 0)
            if value is None:
                changes.append(Change(key, None, 0, self.revision, 0, *before))
                continue
            row = Row(
                key, value, was.create_revision if was else self.revision, self.revision, was.version + 1 if was else 1
            )
            self.rows[key] = row
            changes.append(Change(key, value, row.create_revision, self.revision, row.version, *before))
        self.told.append(Told("all", 1, self.now_ns + 3 * MS, self.revision, changes))

    def _seen(self, key: str) -> Seen | None:
        row = self.rows.get(key)
        return (row.value, row.create_revision, row.mod_revision, row.version) if row else None

    def _part(self, key: str, what: str) -> str | int | None:
        row = self.rows.get(key, Row(key, "", 0, 0, 0))
        if what == "value":
            return row.value if key in self.rows else None
        return {"create": row.create_revision, "mod": row.mod_revision, "version": row.version}[what]

    def _done(self, kind: Any, key: str, outcome: Outcome, part: str, **more: Any) -> Op:
        number = len(self.ops) + 1
        op = Op(
            number, "p1", kind, "e1", BASE + key if key else "", self.now_ns, self.now_ns + 5 * MS, outcome, part=part,
            revision=self.revision if outcome == "ok" else 0, term=self.term, **more,
        )  # fmt: skip
        self.now_ns += 10 * MS
        self.ops.append(op)
        return op


def findings(history: History) -> dict[str, Finding]:
    return {finding.rule: finding for finding in check_all(history)}


def broken(history: History) -> set[str]:
    return {finding.rule for finding in check_all(history) if finding.verdict is Verdict.FAIL}


def change_op(history: History, op: Op, **changes: Any) -> None:
    """Another answer to one operation."""
    history.ops = [replace(one, **changes) if one.id == op.id else one for one in history.ops]


def change_told(history: History, revision: int, how: Callable[[Told], Sequence[Told]]) -> None:
    """Another response in place of the one about that revision."""
    told: list[Told] = []
    for one in history.told:
        told += how(one) if any(change.mod_revision == revision for change in one.changes) else [one]
    history.told = told
