"""From a history to a report: numbers and findings per trial, findings over the whole, one verdict. Pure.

Owns which invariant is asked of which trial. What a trial may cost is in its ``begin`` mark (``budgets``), what
happened in the marks that follow; so the file alone gives the same verdict again. A trial that injected nothing, or
whose load was thin before or after the fault, has proved nothing: it is INCONCLUSIVE, never a pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from chaos.availability import Second, Served, Window, per_second, served
from chaos.budgets import Budgets, budgets_of_act
from chaos.checkers import check_all
from chaos.checkers.evictions import check_evictions, pauses, reasons
from chaos.claims import claim_findings
from chaos.findings import Finding, Verdict, judge, worst
from chaos.observed import observed_findings
from chaos.records import KEYED, History, Mark

__all__ = ["STEADY_ACKS_MIN", "STEADY_REQUESTS_MIN", "ActReport", "Report", "judge_history"]

#: What the load must have achieved in the steady stretch before a fault and in the one after recovery, for the trial to
#: count: acknowledged writes, and answered requests of the Service.
STEADY_ACKS_MIN: Final = 20
STEADY_REQUESTS_MIN: Final = 10
_STEADY_RULES: Final = ("steady load before", "steady load after")
#: What a run without a word about it did.
_WORKLOAD: Final = ("kv", "watch", "http")
_PARTS_WITH_RULES_OF_THEIR_OWN: Final = frozenset({"txn", "lease", "lock", "deploy"})


@dataclass(frozen=True, slots=True)
class ActReport:
    """One trial of an experiment (once: an act). ``observed`` is what was seen of the cluster from outside the history:
    leaders, pods, times. ``faults`` are the details of its fault marks, ``seconds`` how it was served in each,
    ``store`` what kind of store served."""

    act: str
    n: int
    duration_s: float
    served: Served
    observed: Mapping[str, Any]
    findings: Sequence[Finding]
    title: str = ""
    seed: str = ""
    budgets: Budgets = field(default_factory=Budgets)
    window: Window = field(default_factory=lambda: Window(0, 0))
    faults: Sequence[Mapping[str, Any]] = ()
    seconds: Sequence[Second] = ()
    store: str = "embedded"

    @property
    def verdict(self) -> Verdict:
        """Of this trial alone."""
        return worst(finding.verdict for finding in self.findings)


@dataclass(frozen=True, slots=True)
class Report:
    """A whole run. ``findings`` are the rules over its entire history."""

    run: str
    acts: Sequence[ActReport]
    findings: Sequence[Finding]

    @property
    def verdict(self) -> Verdict:
        """PASS only if every trial and every rule passed, and there was a trial."""
        return worst([*(act.verdict for act in self.acts), *(f.verdict for f in self.findings)] if self.acts else [])


def judge_history(history: History) -> Report:
    """The report of a history."""
    by_act: dict[tuple[str, int], list[Mark]] = {}
    for mark in history.marks:
        by_act.setdefault((mark.act, mark.n), []).append(mark)
    acts = [
        _Trial(history, act, n, marks).report()
        for (act, n), marks in by_act.items()
        if any(mark.name == "begin" for mark in marks)
    ]
    return Report(history.header.run, acts, [*check_all(history), *_idle(history), _whole(history)])


def _idle(history: History) -> list[Finding]:
    """Parts of the load that were asked for and got nothing done: the rules about them had nothing to judge, and are
    not listed."""
    asked = {part for mark in history.marks if mark.name == "begin" for part in mark.detail.get("workload") or ()}
    worked = {op.part for op in history.ops if op.outcome == "ok" and op.kind in KEYED}
    worked |= {"txn"} if "append" in worked else set()
    worked |= {mark.act for mark in history.marks if mark.name == "wanted"}
    idle = sorted((asked & _PARTS_WITH_RULES_OF_THEIR_OWN) - worked)
    if not idle:
        return []
    return [Finding("every part of the load was at work", Verdict.INCONCLUSIVE, 0, note=f"idle: {', '.join(idle)}")]


def _whole(history: History) -> Finding:
    """The file is there to its end, and the run went through to its end."""
    ended = any(mark.name == "run-ended" for mark in history.marks) and not history.torn
    return judge("the history is complete", int(ended), [], note="" if ended else "the run was cut short")


class _Trial:
    """One trial and its marks, in the order they were made."""

    def __init__(self, history: History, act: str, n: int, marks: Sequence[Mark]) -> None:
        self._history = history
        self._act, self._n = act, n
        self._first: dict[str, Mark] = {}
        self._last: dict[str, Mark] = {}
        for mark in marks:
            self._first.setdefault(mark.name, mark)
            self._last[mark.name] = mark
        self._marks = marks
        self._begin = self._first["begin"]
        self._window = Window(self._begin.at_ns, max(mark.at_ns for mark in marks))
        self._faults = [mark for mark in marks if mark.name == "fault"]
        self._healed = [mark for mark in marks if mark.name == "healed"]
        given = self._begin.detail.get("budgets")
        self._budgets = budgets_of_act(act) if given is None else Budgets.of(given)
        self._workload: Sequence[str] = self._begin.detail.get("workload") or _WORKLOAD
        self._once = history.header.store == "embedded"

    def report(self) -> ActReport:
        found = served(self._history.ops, self._window)
        observed = self._last["observed"].detail if "observed" in self._last else {}
        findings = self._went_through()
        steady = [finding.verdict for finding in findings if finding.rule in _STEADY_RULES] == [Verdict.PASS] * 2
        findings += self._served_findings(found, steady=steady)
        findings += observed_findings(self._act, observed, self._budgets)
        findings += self._evictions()
        findings += self._claimed()
        detail = self._begin.detail
        return ActReport(
            self._act, self._n, (self._window.end_ns - self._window.begin_ns) / 1e9, found, observed, findings,
            title=str(detail.get("title", "")),
            seed=str(detail.get("seed", "")),
            budgets=self._budgets,
            window=self._window,
            faults=[mark.detail for mark in self._faults],
            seconds=per_second(self._history.ops, self._window),
            store=self._history.header.store,
        )  # fmt: skip

    def _went_through(self) -> list[Finding]:
        """It broke something, under load, and came to its end."""
        # What has been seen to be wrong is wrong, also where not all of the experiment could be done.
        impossible = self._impossible()
        if deviations := self._deviations():
            return [*deviations, *impossible]
        if impossible:
            return impossible
        if not {"recovered", "observed"} <= self._first.keys():
            return [Finding("the act went through to its end", Verdict.INCONCLUSIVE, 0, note="it was cut short")]
        if not self._faults:
            return [Finding("a fault was injected", Verdict.INCONCLUSIVE, 0, note="nothing was broken")]
        findings = self._traces()
        recovered = self._last["recovered"]
        findings.append(self._steady("before", Window(self._begin.at_ns, self._faults[0].at_ns)))
        findings.append(self._steady("after", Window(recovered.at_ns, self._window.end_ns)))
        return findings

    def _impossible(self) -> list[Finding]:
        if "impossible" not in self._first:
            return []
        reason = str(self._first["impossible"].detail.get("reason", "it cannot be made here"))
        return [Finding("the fault can be made here", Verdict.INCONCLUSIVE, 0, note=reason)]

    def _traces(self) -> list[Finding]:
        """Every kind of fault left its trace at least once, as far as it can be told; nothing if all did."""
        bit: dict[str, bool] = {}
        blunt = 0
        kinds = {str(mark.detail.get("id")): str(mark.detail.get("fault", "fault")) for mark in self._faults}
        for mark in self._healed:
            found = (mark.detail.get("proof") or {}).get("bit")
            kind = kinds.get(str(mark.detail.get("id")), "fault")
            blunt += found is False
            bit[kind] = bit.get(kind, False) or found is not False
        never = sorted(kind for kind, did in bit.items() if not did)
        if not blunt:
            return []
        note = f"{blunt} of {len(self._faults)} left no trace"
        if never:
            note += f", never one of: {', '.join(never)}"
        verdict = Verdict.INCONCLUSIVE if never else Verdict.PASS
        return [Finding("every kind of fault left its trace", verdict, len(self._faults), note=note)]

    def _deviations(self) -> list[Finding]:
        """The cluster did not do what the experiment expects of it. Before anything was broken that says nothing of
        the cluster under faults; later it is a failure, however far the trial came."""
        details = [mark.detail for mark in self._marks if mark.name == "deviated"]
        if not details:
            return []
        said = [f"{detail.get('what', 'it')}: {detail.get('text', '')}" for detail in details]
        if all(detail.get("when") == "before" for detail in details):
            note = "; ".join(said)
            return [Finding("all was well before anything was broken", Verdict.INCONCLUSIVE, len(said), note=note)]
        return [judge("the cluster did what the experiment expects", len(said), said)]

    def _evictions(self) -> list[Finding]:
        """Of a trial that came to its end: what follows on a fault comes after it."""
        if not self._faults or "recovered" not in self._first:
            return []
        healed = {str(mark.detail.get("id")): mark.at_ns for mark in self._healed}
        struck = [(mark, healed.get(str(mark.detail.get("id")), self._window.end_ns)) for mark in self._faults]
        found = check_evictions(
            self._history.nodes, self._history.pods, reasons(struck), pauses(struck),
            begin_ns=self._window.begin_ns, end_ns=self._window.end_ns,
        )  # fmt: skip
        return [found] if found is not None else []

    def _claimed(self) -> list[Finding]:
        """What its name says happened at the same time; nothing where no fault was struck, which is told already."""
        claims = self._begin.detail.get("proves") or ()
        if not self._faults:
            return []
        return claim_findings(claims, self._marks, self._history.ops, self._workload, self._window.end_ns)

    def _steady(self, when: str, window: Window) -> Finding:
        """Without load there is nothing a fault could have disturbed."""
        seen = served(self._history.ops, window)
        enough, said = True, []
        if {"kv", "txn"} & set(self._workload):
            enough &= seen.writes_acknowledged >= STEADY_ACKS_MIN
            said.append(f"{seen.writes_acknowledged} writes")
        broken = []
        if "http" in self._workload:
            enough &= seen.http_requests >= STEADY_REQUESTS_MIN
            said.append(f"{seen.http_requests} requests")
            broken = [f"{seen.http_requests_failed} requests failed"] if seen.http_requests_failed else []
        note = f"{', '.join(said)} in {(window.end_ns - window.begin_ns) / 1e9:.1f} s"
        return judge(f"steady load {when}", int(enough and bool(said)), broken, note=note)

    def _served_findings(self, found: Served, *, steady: bool) -> list[Finding]:
        """Without a steady load a gap says nothing: nobody may have been writing."""
        budgets, findings = self._budgets, []
        if budgets.write_gap_s is not None:
            gap_s, budget_s = found.longest_write_gap_s, budgets.write_gap_s
            findings.append(
                judge(
                    f"writes acknowledged again within {budget_s:g} s",
                    found.writes_acknowledged if steady else 0,
                    [f"none for {gap_s:.3f} s"] if steady and gap_s > budget_s else [],
                    note=f"longest gap {gap_s:.3f} s",
                )
            )
        if budgets.read_gap_s is not None:
            gap_s, budget_s = found.longest_read_gap_s, budgets.read_gap_s
            findings.append(
                judge(
                    f"reads answered again within {budget_s:g} s",
                    found.reads_answered if steady else 0,
                    [f"none for {gap_s:.3f} s"] if steady and gap_s > budget_s else [],
                    note=f"longest gap {gap_s:.3f} s",
                )
            )
        findings.append(self._operations(found))
        if found.leases_asked:
            findings.append(self._leases(found))
        if "http" in self._workload and budgets.requests_failed is not None:
            over = found.http_requests_failed > budgets.requests_failed
            findings.append(
                judge(
                    "no request failed after one retry"
                    if not budgets.requests_failed
                    else f"at most {budgets.requests_failed:g} requests failed after one retry",
                    found.http_requests,
                    [f"{found.http_requests_failed} of {found.http_requests}"] if over else [],
                    note=f"{found.http_attempts_failed} attempts failed" if found.http_attempts_failed else "",
                )
            )
        return findings

    def _operations(self, found: Served) -> Finding:
        """Our store applies a repeated write once, so that clients need not leave any in doubt; on etcd a write whose
        member died stays in doubt, and its own elections answer some calls with an error, which clients there bear."""
        budgets = self._budgets
        failed_max, unknown_max = budgets.operations_failed, budgets.operations_unknown
        if not self._once:
            unknown_max = None
            if self._act == "store-leader-kill":
                failed_max = None
        broken: list[str] = []
        said: list[str] = []
        for count, most, what in (
            (found.operations_failed, failed_max, "failed"),
            (found.operations_unknown, unknown_max, "of unknown outcome"),
        ):
            if count:
                (broken if most is not None and count > most else said).append(f"{count} {what}")
        keyed = found.writes_acknowledged + found.reads_answered
        strict = budgets.operations_failed == 0 and budgets.operations_unknown == 0
        rule = "no operation failed" if strict else "no more operations failed than allowed"
        return judge(rule, keyed, broken, note="; ".join(said))

    def _leases(self, found: Served) -> Finding:
        """Grants, renewals and revocations are operations too: who loses a lease because nobody renewed it is not
        helped by its having run out in time."""
        most = self._budgets.leases_failed
        if not self._once and self._begin.detail.get("budgets", {}).get("leases_failed") is None:
            most = None
        count = found.leases_failed
        broken = [f"{count} of {found.leases_asked}"] if most is not None and count > most else []
        rule = "no lease operation failed" if most == 0 else "no more lease operations failed than allowed"
        return judge(rule, found.leases_asked, broken, note=f"{count} failed" if count and not broken else "")
