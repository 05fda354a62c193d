"""From a history to a report: numbers and findings per act, findings over the whole, one verdict. Pure.

Owns the budgets and which invariant is asked of which act. A run whose load was thin
before or after the fault has proved nothing: it is INCONCLUSIVE, never a pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from chaos.availability import Served, Window, served
from chaos.checkers import check_all
from chaos.findings import Finding, Verdict, judge, worst
from chaos.history import History, Mark

__all__ = ["STEADY_ACKS_MIN", "STEADY_REQUESTS_MIN", "ActReport", "Report", "judge_history"]

#: What the load must have achieved in the steady stretch before a fault and in the one after recovery, for the act to
#: count: acknowledged writes, and answered requests of the Service.
STEADY_ACKS_MIN: Final = 20
STEADY_REQUESTS_MIN: Final = 10

#: Longest time without an acknowledged write, seconds. Generous next to what is normal, so that a busy machine does
#: not fail a run, and well under what a person would call an outage. A disaster has downtime; its budget is the
#: whole way from the last replica's death to the first write of the restored cluster.
_WRITE_GAP_BUDGET_S: Final[Mapping[str, float]] = {
    "leader-kill": 1.0,
    "node-kill": 1.0,
    "scaling": 1.0,
    "store-leader-kill": 5.0,
    "disaster": 15.0,
}
#: From the fault until all pods are Ready on other nodes, seconds. Twice the target, for the same reason.
_REPLACED_BUDGET_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class ActReport:
    """One act. ``observed`` is what was seen of the cluster from outside the history: leaders, pods, times."""

    act: str
    n: int
    duration_s: float
    served: Served
    observed: Mapping[str, Any]
    findings: Sequence[Finding]

    @property
    def verdict(self) -> Verdict:
        """Of this act alone."""
        return worst(finding.verdict for finding in self.findings)


@dataclass(frozen=True, slots=True)
class Report:
    """A whole run. ``findings`` are the rules over its entire history."""

    run: str
    acts: Sequence[ActReport]
    findings: Sequence[Finding]

    @property
    def verdict(self) -> Verdict:
        """PASS only if every act and every rule passed, and there was an act."""
        return worst([*(act.verdict for act in self.acts), *(f.verdict for f in self.findings)] if self.acts else [])


def judge_history(history: History) -> Report:
    """The report of a history."""
    by_act: dict[tuple[str, int], dict[str, Mark]] = {}
    for mark in history.marks:
        by_act.setdefault((mark.act, mark.n), {})[mark.name] = mark
    acts = [_act(history, act, n, marks) for (act, n), marks in by_act.items() if "begin" in marks]
    return Report(history.header.run, acts, [*check_all(history), _whole(history)])


def _whole(history: History) -> Finding:
    """The file is there to its end, and the run went through to its end."""
    ended = any(mark.name == "run-ended" for mark in history.marks) and not history.torn
    return judge("the history is complete", int(ended), [], note="" if ended else "the run was cut short")


def _act(history: History, act: str, n: int, marks: Mapping[str, Mark]) -> ActReport:
    begin, end = marks["begin"].at_ns, max(mark.at_ns for mark in marks.values())
    observed = marks["observed"].detail if "observed" in marks else {}
    window = Window(begin, end)
    found = served(history.ops, window)
    once = history.header.store == "embedded"
    findings: list[Finding] = []
    if "fault" not in marks or "recovered" not in marks or "observed" not in marks:
        findings.append(Finding("the act went through to its end", Verdict.INCONCLUSIVE, 0, note="it was cut short"))
    else:
        findings.append(_steady(history, "before", Window(begin, marks["fault"].at_ns)))
        findings.append(_steady(history, "after", Window(marks["recovered"].at_ns, end)))
    steady = all(finding.verdict is Verdict.PASS for finding in findings)
    findings += _served_findings(act, found, steady=steady, once=once)
    findings += _observed_findings(act, observed)
    return ActReport(act, n, (end - begin) / 1e9, found, observed, findings)


def _steady(history: History, when: str, window: Window) -> Finding:
    """Without load there is nothing a fault could have disturbed."""
    seen = served(history.ops, window)
    enough = seen.writes_acknowledged >= STEADY_ACKS_MIN and seen.http_requests >= STEADY_REQUESTS_MIN
    note = f"{seen.writes_acknowledged} writes, {seen.http_requests} requests in {_seconds(window):.1f} s"
    broken = [f"{seen.http_requests_failed} requests failed"] if seen.http_requests_failed else []
    return judge(f"steady load {when}", int(enough), broken, note=note)


def _seconds(window: Window) -> float:
    return (window.end_ns - window.begin_ns) / 1e9


def _served_findings(act: str, found: Served, *, steady: bool, once: bool) -> list[Finding]:
    """Without a steady load a gap says nothing: nobody may have been writing. ``once``: the store applies a repeated
    write once, so that clients need not leave any in doubt; on etcd a write whose member died stays in doubt."""
    budget_s = _WRITE_GAP_BUDGET_S.get(act, 1.0)
    late = steady and found.longest_write_gap_s > budget_s
    keyed = found.writes_acknowledged + found.reads_answered
    unknown = f"{found.operations_unknown} of unknown outcome" if found.operations_unknown else ""
    failed = f"{found.operations_failed} failed" if found.operations_failed else ""
    lost = [text for text in (failed, unknown if once else "") if text]
    note = "" if once else unknown
    if act == "store-leader-kill" and not once:
        # etcd's own election: it answers some calls with an error, and its clients are meant to bear that. What must
        # hold is that nothing acknowledged was lost, which other rules judge.
        lost, note = [], "; ".join(text for text in (failed, unknown) if text)
    return [
        judge(
            f"writes acknowledged again within {budget_s:g} s",
            found.writes_acknowledged if steady else 0,
            [f"none for {found.longest_write_gap_s:.3f} s"] if late else [],
            note=f"longest gap {found.longest_write_gap_s:.3f} s",
        ),
        judge("no operation failed", keyed, lost, note=note),
        judge(
            "no request failed after one retry",
            found.http_requests,
            [f"{found.http_requests_failed} of {found.http_requests}"] if found.http_requests_failed else [],
            note=f"{found.http_attempts_failed} attempts failed" if found.http_attempts_failed else "",
        ),
    ]


def _observed_findings(act: str, observed: Mapping[str, Any]) -> list[Finding]:
    if not observed:
        return []
    findings = [_untouched(observed)]
    if act in {"leader-kill", "store-leader-kill"}:
        findings.append(_new_leader(observed))
    elif act == "node-kill":
        findings.append(_replaced(observed))
    elif act == "scaling":
        findings.append(_scaled(observed))
    elif act == "disaster":
        findings.append(_restored(observed))
    return findings


def _untouched(observed: Mapping[str, Any]) -> Finding:
    """Pods that had no reason to stop were neither restarted nor replaced: by the API's account and by the operating
    system's, which knows their processes."""
    restarted, replaced = int(observed["pods_restarted"]), int(observed["pods_replaced_without_need"])
    ended = int(observed["processes_ended"])
    counts = {"restarted": restarted, "replaced without need": replaced, "whose process ended": ended}
    broken = [f"{n} {what}" for what, n in counts.items() if n]
    return judge("no pod restarted", int(observed["pods_watched"]), broken)


def _new_leader(observed: Mapping[str, Any]) -> Finding:
    old, new = observed["leader_before"], observed["leader_after"]
    broken = []
    if not new or new == old:
        broken.append(f"the leader was {old} and is {new}")
    if int(observed["term_after"]) <= int(observed["term_before"]):
        broken.append(f"the term was {observed['term_before']} and is {observed['term_after']}")
    # Not a violation: nobody was disturbed longer than the gap that is judged. But a replica that comes back should
    # leave the leader alone, so it is told.
    later = int(observed.get("elections_after", 0))
    note = f"{old} → {new}" + (f", then {later} more terms" if later else "")
    return judge("another replica leads", 1, broken, note=note)


def _replaced(observed: Mapping[str, Any]) -> Finding:
    killed, took_s = int(observed["pods_killed"]), observed.get("replaced_s")
    broken = []
    if took_s is None:
        broken.append("pods were not Ready elsewhere")
    elif float(took_s) > _REPLACED_BUDGET_S:
        broken.append(f"took {float(took_s):.2f} s")
    note = f"{killed} pods in {float(took_s):.2f} s" if took_s is not None else f"{killed} pods"
    return judge(f"pods Ready elsewhere within {_REPLACED_BUDGET_S:g} s", killed, broken, note=note)


def _scaled(observed: Mapping[str, Any]) -> Finding:
    wanted, ready, took_s = int(observed["pods_wanted"]), int(observed["pods_ready"]), observed.get("scaled_s")
    broken = [] if ready >= wanted and took_s is not None else [f"{ready} of {wanted} pods Ready"]
    on_new = {str(k): int(v) for k, v in observed["pods_on_new_nodes"].items()}
    broken += [f"{node} has no pod" for node, pods in on_new.items() if not pods]
    note = ", ".join(f"{pods} on {node}" for node, pods in on_new.items())
    return judge("all pods Ready, new nodes used", len(on_new), broken, note=note)


def _restored(observed: Mapping[str, Any]) -> Finding:
    broken = []
    if observed["snapshot_hash"] != observed["restored_hash"]:
        broken.append(f"state hash {observed['restored_hash']} is not the snapshot's {observed['snapshot_hash']}")
    if observed["snapshot_digest"] != observed["served_digest"]:
        broken.append("the keys served are not the snapshot's")
    if int(observed["restored_revision"]) <= int(observed["revision_before_loss"]):
        broken.append(f"revision {observed['restored_revision']} is not above {observed['revision_before_loss']}")
    note = f"{observed['keys']} keys of revision {observed['snapshot_revision']}"
    return judge("restored exactly, at a higher revision", int(observed["keys"]), broken, note=note)
