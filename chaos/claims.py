"""Coincidences that an experiment's name claims, and what proves each. Pure.

"Killed *while* it binds" is true of a trial only if something was being bound at that moment. A trial of an experiment
that claims a coincidence (``proves``) and shows no proof of it is INCONCLUSIVE, however well all went.

Some proofs are seen by who struck or asked, and come as marks ``proved`` (claim, and what was seen; nothing: it was
looked for and not found). The others are computed from the marks of faults and the operations in the history.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Final

from chaos.availability import Window, served
from chaos.findings import Finding, Verdict
from chaos.records import Mark, Op

__all__ = [
    "BINDS_IN_FLIGHT",
    "CLAIMS",
    "RECEIVED_AT_KILL",
    "SNAPSHOT_AT_KILL",
    "UNSYNCED_TAIL",
    "claim_findings",
    "windows_of",
]

BINDS_IN_FLIGHT: Final = "binds-in-flight"
SNAPSHOT_AT_KILL: Final = "snapshot-cut-at-kill"
RECEIVED_AT_KILL: Final = "snapshot-received-at-kill"
UNSYNCED_TAIL: Final = "unsynced-tail"
_UNDER_LOAD: Final = "load-under-fault"
_OVERLAP: Final = "faults-overlap"
#: Claim -> what must have been so.
CLAIMS: Final[Mapping[str, str]] = {
    BINDS_IN_FLIGHT: "pods without a node when the leader was killed were bound by the next leader",
    SNAPSHOT_AT_KILL: "a snapshot was being cut when the replica was killed",
    RECEIVED_AT_KILL: "a snapshot was being received when the replica was killed",
    UNSYNCED_TAIL: "what had been written was not synced when the replica died",
    _UNDER_LOAD: "clients were served while the fault was in force",
    _OVERLAP: "faults were in force at the same time",
}
_ACKS_MIN: Final = 20
_REQUESTS_MIN: Final = 10


def claim_findings(
    claims: Sequence[str], marks: Sequence[Mark], ops: Sequence[Op], workload: Sequence[str], end_ns: int
) -> list[Finding]:
    """One for each claim."""
    windows = windows_of(marks, end_ns)
    return [_finding(claim, _proof(claim, marks, windows, ops, workload)) for claim in claims]


def windows_of(marks: Iterable[Mark], end_ns: int) -> list[Window]:
    """The time of each fault, from its strike until it was healed or the trial ended."""
    began: dict[str, int] = {}
    found: list[Window] = []
    for mark in marks:
        name = str(mark.detail.get("id"))
        if mark.name == "fault":
            began[name] = mark.at_ns
        elif mark.name == "healed" and name in began:
            found.append(Window(began.pop(name), mark.at_ns))
    return found + [Window(at_ns, end_ns) for at_ns in began.values()]


def _finding(claim: str, proof: str) -> Finding:
    rule = f"proven: {CLAIMS.get(claim, claim)}"
    if proof:
        return Finding(rule, Verdict.PASS, 1, note=proof)
    return Finding(rule, Verdict.INCONCLUSIVE, 0, note="no proof: it may have missed")


def _proof(
    claim: str, marks: Sequence[Mark], windows: Sequence[Window], ops: Sequence[Op], workload: Sequence[str]
) -> str:
    """What proves it; empty: nothing."""
    if claim == _UNDER_LOAD:
        return _load(windows, ops, workload)
    if claim == _OVERLAP:
        pairs = sum(1 for a, b in combinations(windows, 2) if a.begin_ns < b.end_ns and b.begin_ns < a.end_ns)
        return f"{pairs} pairs of {len(windows)}" if pairs else ""
    said = [
        str(mark.detail.get("seen") or "") for mark in marks if mark.name == "proved" and mark.detail["what"] == claim
    ]
    return "; ".join(said) if said and all(said) else ""


def _load(windows: Sequence[Window], ops: Sequence[Op], workload: Sequence[str]) -> str:
    acked = requests = 0
    for window in windows:
        found = served(ops, window)
        acked = max(acked, found.writes_acknowledged)
        requests = max(requests, found.http_requests - found.http_requests_failed)
    enough = bool(windows) and acked >= _ACKS_MIN and ("http" not in workload or requests >= _REQUESTS_MIN)
    return f"{acked} writes acknowledged, {requests} requests answered in one fault's time" if enough else ""
