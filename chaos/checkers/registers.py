"""Keys that several clients fight over: linearizability by revisions, O(n log n).

Every answer names the revision it is true at. So a read must show the state of its revision, a transaction that wrote
must have found its compares true just before, one whose compares failed must have found one of them false at its
revision, and revisions must follow real time.
"""

from __future__ import annotations

from collections.abc import Iterator

from chaos.checkers.log import Log, State, named
from chaos.findings import Finding, judge
from chaos.records import Compare, Op, Seen

__all__ = ["check_registers"]


def check_registers(log: Log) -> list[Finding]:
    """Nothing if there are no such keys."""
    if not log.ops:
        return []
    return [_written_once(log), _answers(log), _compares(log), _real_time(log)]


def _written_once(log: Log) -> Finding:
    """What was acknowledged happened, once, and is in the final read-back unless something newer is; what was refused
    did not; nothing else was seen."""
    broken = list(log.problems)
    for listing in log.history.listings:
        if listing.reason != "shared":
            continue
        rows = {row.key: row for row in listing.rows}
        for key in log.keys:
            state, row = log.state(key, listing.revision), rows.get(key)
            if state.value is None or not log.certain(key, listing.revision):
                continue
            if row is None:
                broken.append(f"{key}, written at revision {state.revision}, is not in the final read-back")
            elif row.mod_revision < state.revision:
                broken.append(
                    f"{key} reads back as of revision {row.mod_revision}; it was written at revision {state.revision}"
                )
    return judge("shared keys: no acknowledged write lost or done twice", log.sightings, broken)


def _answers(log: Log) -> Finding:
    """Whatever an answer shows of a key is the key's state at the answer's revision."""
    checked = 0
    broken: list[str] = []
    for op in log.answered:
        for key, seen in log.accesses[op.id].reads:
            if not op.revision:
                continue
            checked += 1
            state = log.before(key, op.revision) if log.accesses[op.id].writes else log.state(key, op.revision)
            if (said := _differs(log, key, op.revision, seen, state)) is not None:
                broken.append(f"{named(op)} at revision {op.revision} {said}")
    return judge("shared keys: answers show the state of their revision", checked, broken)


def _differs(log: Log, key: str, at: int, seen: Seen | None, state: State) -> str | None:
    certain = log.certain(key, at)
    if seen is None:
        if state.value is None or not certain:
            return None
        return f"shows no {key}, which was written at revision {state.revision}"
    value, create_revision, revision, version = seen
    if revision and revision != state.revision:
        return f"shows {key} as of revision {revision}; it was last changed at {state.revision}"
    if value != state.value and (revision or certain):
        return f"shows {key} = {value!r}; it was {state.value!r}"
    if not certain:
        return None  # unseen writes count too
    if version and version != state.version:
        return f"shows {key} at version {version}; it was written {state.version} times"
    if create_revision and create_revision != state.create_revision:
        return f"shows {key} as created at revision {create_revision}; it was at {state.create_revision}"
    return None


def _compares(log: Log) -> Finding:
    """A transaction took the branch that the state at its revision called for."""
    checked = 0
    broken: list[str] = []
    for op in log.answered:
        if op.kind != "txn" or not op.compares or not op.revision:
            continue
        wrote = log.changed(op)
        keys = {compare[0] for compare in op.compares}
        if not all(log.certain(key, op.revision) for key in keys):
            continue
        checked += 1
        states = {key: log.before(key, op.revision) if wrote else log.state(key, op.revision) for key in keys}
        false = [compare for compare in op.compares if not _holds(compare, states[compare[0]])]
        if op.succeeded and false:
            key, what, wanted = false[0]
            broken.append(
                f"{named(op)} wrote at revision {op.revision} though {what} of {key} was not {wanted!r} but "
                f"{_part(what, states[key])!r}"
            )
        elif not op.succeeded and not false:
            broken.append(f"{named(op)} was refused at revision {op.revision} though all it compared was so")
    return judge("shared keys: compares are judged by the state they met", checked, broken, at_least=0)


def _holds(compare: Compare, state: State) -> bool:
    _, what, wanted = compare
    return _part(what, state) == wanted


def _part(what: str, state: State) -> str | int | None:
    return {
        "value": state.value, "create": state.create_revision, "mod": state.revision, "version": state.version,
    }[what]  # fmt: skip


def _real_time(log: Log) -> Finding:
    """If a returned before b was called, a's revision is not after b's, and is before it if b wrote."""
    placed = list(_placed(log))
    returns = sorted((op for op, _, told in placed if told), key=lambda op: op.return_ns)
    placed.sort(key=lambda item: item[0].call_ns)
    broken: list[str] = []
    newest: Op | None = None
    returned = 0
    for op, revision, _ in placed:
        while returned < len(returns) and returns[returned].return_ns < op.call_ns:
            candidate = returns[returned]
            if newest is None or candidate.revision > newest.revision:
                newest = candidate
            returned += 1
        if newest is None or op.serializable:
            continue
        if revision < newest.revision or (revision == newest.revision and log.changed(op)):
            broken.append(f"{named(op)} at revision {revision} began after {named(newest)} had returned")
    return judge("shared keys: revisions follow real time", len(placed), broken, at_least=2)


def _placed(log: Log) -> Iterator[tuple[Op, int, bool]]:
    """(operation, its revision, whether its client was told), of all that have one."""
    for op in log.answered:
        if op.revision:
            yield op, op.revision, not op.serializable
    for op, revision in log.found():
        yield op, revision, False
