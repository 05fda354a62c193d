"""The verdict of an act and of a run: what passes, what fails, and what proves nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from chaos.findings import Finding, Verdict, judge, worst
from chaos.records import History, NodeSeen, Op, Outcome, PodSeen
from chaos.report import as_dict, render, render_repeats
from chaos.verdict import Report, judge_history
from tests.unit.chaos.stories import SECOND, Story

UNTOUCHED = {"pods_watched": 6, "pods_restarted": 0, "pods_replaced_without_need": 0, "processes_ended": 0}
OBSERVED: dict[str, dict[str, Any]] = {
    "leader-kill": {"leader_before": "r1", "leader_after": "r2", "term_before": 3, "term_after": 4, "leader_s": 0.08},
    "node-kill": {"node": "node-1", "pods_killed": 2, "replaced_s": 2.5},
    "scaling": {"pods_wanted": 30, "pods_ready": 30, "scaled_s": 4.0, "pods_on_new_nodes": {"node-4": 5, "node-5": 6}},
    "disaster": {
        "snapshot_hash": "a", "restored_hash": "a", "snapshot_digest": "b", "served_digest": "b", "keys": 9,
        "restored_revision": 2000, "revision_before_loss": 50, "snapshot_revision": 40, "first_write_s": 1.5,
    },
}  # fmt: skip


def played(act: str = "leader-kill", *, before: int = 30, after: int = 30, **observed: object) -> Story:
    made = Story()
    made.mark("begin", act)
    made.steady(before)
    made.mark("fault", act)
    made.steady(3)
    made.mark("recovered", act)
    made.steady(after)
    made.mark("observed", act, **{**UNTOUCHED, **OBSERVED[act], **observed})
    return made


def judged(history: History) -> tuple[Report, dict[str, Finding]]:
    report = judge_history(history)
    (act,) = report.acts
    return report, {finding.rule: finding for finding in act.findings}


def failed(history: History) -> list[str]:
    _, found = judged(history)
    return [rule for rule, finding in found.items() if finding.verdict is Verdict.FAIL]


@pytest.mark.parametrize("act", list(OBSERVED))
def test_an_act_that_disturbs_nobody_passes(act: str) -> None:
    report, found = judged(played(act).history())
    assert {finding.verdict for finding in found.values()} == {Verdict.PASS}
    assert report.verdict is Verdict.PASS


def test_a_planted_false_eviction_fails_the_trial_that_it_was_in() -> None:
    """An agent away for 0.9 s, its node given up, its pod gone: recorded, read from the file, and found."""
    history = played("node-kill").history()
    at_ns = history.marks[1].at_ns
    history.nodes += [NodeSeen(SECOND, f"node-{n}", heard=True) for n in (1, 2)]
    history.nodes += [
        NodeSeen(at_ns, "node-2", since_ns=at_ns),
        NodeSeen(at_ns + 900_000_000, "node-2", heard=True),
        NodeSeen(at_ns + 910_000_000, "node-2", heard=True, condemned=True),
    ]
    history.pods += [PodSeen(SECOND, "web", "u1", "web-1", "node-2")]
    rule = "no pod evicted from a node that was there, or came back in time"
    assert judged(history)[1][rule].verdict is Verdict.PASS
    history.pods += [PodSeen(at_ns + 920_000_000, "web", "u1", "web-1", "node-2", gone=True)]
    history.marks[-2] = replace(history.marks[-2], at_ns=at_ns + SECOND)
    report, _ = judged(history)
    assert (failed(history), report.verdict) == ([rule], Verdict.FAIL)
    # By a cut that reached it, or one that reached another.
    cut = {"id": "x", "fault": "partition", "excused": ["node-2"]}
    history.marks[1] = replace(history.marks[1], detail=cut)
    assert failed(history) == []
    history.marks[1] = replace(history.marks[1], detail={**cut, "excused": ["node-1"]})
    assert failed(history) == [rule]


@pytest.mark.parametrize(("before", "after"), [(10, 30), (30, 10), (0, 30)])
def test_a_run_whose_load_was_thin_proves_nothing(before: int, after: int) -> None:
    report, _ = judged(played(before=before, after=after).history())
    assert report.verdict is Verdict.INCONCLUSIVE


def test_a_part_of_the_load_that_got_nothing_done_proves_nothing() -> None:
    history = played().history()
    begin = history.marks[0]
    history.marks[0] = replace(begin, detail={"workload": ["kv", "watch", "http", "lease"]})
    report = judge_history(history)
    assert report.verdict is Verdict.INCONCLUSIVE
    assert "idle: lease" in [finding.note for finding in report.findings]
    put = history.of_kind("put")[0]
    history.ops.append(replace(put, id=10_000, part="lease", key="k", revision=0))
    assert "idle: lease" not in [finding.note for finding in judge_history(history).findings]


def test_a_run_without_acts_proves_nothing() -> None:
    made = Story()
    made.steady()
    assert judge_history(made.history()).verdict is Verdict.INCONCLUSIVE


def test_an_act_cut_short_proves_nothing() -> None:
    history = played().history()
    history.marks = [mark for mark in history.marks if mark.name not in {"observed", "recovered"}]
    report, _ = judged(history)
    assert report.verdict is Verdict.INCONCLUSIVE


def test_a_run_cut_short_proves_nothing() -> None:
    history = played().history()
    history.marks.pop()
    assert judge_history(history).verdict is Verdict.INCONCLUSIVE
    torn = played().history()
    torn.torn = True
    assert judge_history(torn).verdict is Verdict.INCONCLUSIVE


def test_a_violation_outweighs_a_run_cut_short() -> None:
    history = played(pods_restarted=1).history()
    history.torn = True
    assert judge_history(history).verdict is Verdict.FAIL


def test_a_lost_write_fails_the_run() -> None:
    history = played().history()
    final = history.listings[-1]
    history.listings[-1] = replace(final, rows=final.rows[1:])
    report, found = judged(history)
    assert report.verdict is Verdict.FAIL
    assert {finding.verdict for finding in found.values()} == {Verdict.PASS}


def test_a_long_gap_fails_the_act() -> None:
    made = played()
    made.marks.pop()
    made.now_ns += 2 * SECOND
    made.mark("observed", "leader-kill", **UNTOUCHED, **OBSERVED["leader-kill"])
    assert failed(made.history()) == ["writes acknowledged again within 1 s"]


def test_a_gap_of_a_load_that_was_thin_anyway_proves_nothing() -> None:
    made = played(before=3, after=3)
    made.marks.pop()
    made.now_ns += 2 * SECOND
    made.mark("observed", "leader-kill", **UNTOUCHED, **OBSERVED["leader-kill"])
    report, _ = judged(made.history())
    assert report.verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize("outcome", ["fail", "info"])
def test_a_failed_or_unknown_operation_fails_the_act(outcome: Outcome) -> None:
    made = played()
    made.put(outcome=outcome, applied=False)
    made.mark("observed", "leader-kill", **UNTOUCHED, **OBSERVED["leader-kill"])
    assert failed(made.history()) == ["no operation failed"]


def test_one_failed_attempt_is_forgiven_and_two_are_not() -> None:
    made = Story()
    made.mark("begin")
    made.steady(30)
    made.mark("fault")
    made.http(attempts_failed=1)
    made.mark("recovered")
    made.steady(30)
    made.mark("observed", "leader-kill", **UNTOUCHED, **OBSERVED["leader-kill"])
    assert failed(made.history()) == []
    made.ops = [replace(op, outcome="fail", attempts_failed=2) if op.attempts_failed else op for op in made.ops]
    assert failed(made.history()) == ["no request failed after one retry"]


@pytest.mark.parametrize("what", ["pods_restarted", "pods_replaced_without_need", "processes_ended"])
@pytest.mark.parametrize("act", list(OBSERVED))
def test_a_pod_that_stopped_without_need_fails_any_act(act: str, what: str) -> None:
    assert failed(played(act, **{what: 1}).history()) == ["no pod restarted"]


@pytest.mark.parametrize(
    ("act", "observed", "rule"),
    [
        ("leader-kill", {"leader_after": "r1"}, "another replica leads"),
        ("leader-kill", {"term_after": 3}, "another replica leads"),
        ("node-kill", {"replaced_s": 11.0}, "pods Ready elsewhere within 10 s"),
        ("node-kill", {"replaced_s": None}, "pods Ready elsewhere within 10 s"),
        ("scaling", {"pods_ready": 29}, "all pods Ready, new nodes used"),
        ("scaling", {"pods_on_new_nodes": {"node-4": 3, "node-5": 0}}, "all pods Ready, new nodes used"),
        ("disaster", {"restored_hash": "x"}, "restored exactly, at a higher revision"),
        ("disaster", {"served_digest": "x"}, "restored exactly, at a higher revision"),
        ("disaster", {"restored_revision": 50}, "restored exactly, at a higher revision"),
    ],
)
def test_what_an_act_is_about_is_judged(act: str, observed: dict[str, Any], rule: str) -> None:
    assert failed(played(act, **observed).history()) == [rule]


def test_a_node_without_pods_proves_nothing() -> None:
    report, _ = judged(played("node-kill", pods_killed=0).history())
    assert report.verdict is Verdict.INCONCLUSIVE


def test_a_rule_checked_on_too_little_is_inconclusive_and_a_broken_one_fails_anyway() -> None:
    assert judge("rule", 0, []).verdict is Verdict.INCONCLUSIVE
    assert judge("rule", 0, ["broken"]).verdict is Verdict.FAIL
    assert judge("rule", 0, [], at_least=0).verdict is Verdict.PASS
    assert judge("rule", 9, (str(n) for n in range(8))).violations == ("0", "1", "2", "3", "4")
    assert judge("rule", 9, (str(n) for n in range(8))).violated == 8


def test_the_worst_verdict_wins() -> None:
    assert worst([Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.FAIL]) is Verdict.FAIL
    assert worst([Verdict.PASS, Verdict.INCONCLUSIVE]) is Verdict.INCONCLUSIVE
    assert worst([Verdict.PASS]) is Verdict.PASS
    assert worst([]) is Verdict.INCONCLUSIVE


def test_a_report_shows_every_finding_and_the_violations() -> None:
    text = render(judge_history(played(pods_restarted=2).history()))
    assert "FAIL         leader-kill: no pod restarted (6 checked)\n             2 restarted" in text
    assert "PASS         no acknowledged write lost (63 checked)" in text
    assert text.endswith("verdict: FAIL")
    assert "new leader 0.08 s" in text


def test_a_report_as_json_says_the_same() -> None:
    found = as_dict(judge_history(played().history()))
    assert found["verdict"] == "PASS"
    assert found["acts"][0]["served"]["writes_acknowledged"] == 63
    assert {finding["verdict"] for finding in found["findings"]} == {"PASS"}


def test_repetitions_are_shown_as_min_median_max() -> None:
    reports = [judge_history(played(leader_s=seconds).history()) for seconds in (0.1, 0.3, 0.2)]
    lines = render_repeats([act for report in reports for act in report.acts]).splitlines()
    (leader,) = (line.split() for line in lines if "time to new leader" in line)
    assert leader[-4:] == ["3", "0.1", "0.2", "0.3"]


def test_of_repetitions_only_what_did_not_pass_is_listed() -> None:
    made = Story()
    for n, restarted in ((1, 0), (2, 1)):
        for name in ("begin", "fault", "recovered"):
            made.mark(name)
            made.steady(30)
        made.mark("observed", "leader-kill", **{**UNTOUCHED, **OBSERVED["leader-kill"], "pods_restarted": restarted})
        made.marks[-4:] = [replace(mark, n=n) for mark in made.marks[-4:]]
    text = render(judge_history(made.history()))
    assert "leader-kill: 1 of 2 PASS" in text
    assert "FAIL         leader-kill #2: no pod restarted" in text
    assert "another replica leads" not in text


def tried(
    *,
    budgets: dict[str, Any] | None = None,
    fault: bool = True,
    proof: dict[str, Any] | None = None,
    **observed: object,
) -> Story:
    """A trial of an experiment that says its budgets itself."""
    made = Story()
    made.mark("begin", "isolate", title="Isolate", seed="7", budgets=budgets or {}, workload=["kv", "watch", "http"])
    made.steady(30)
    if fault:
        made.mark("fault", "isolate", id="f1", fault="partition", victims=["r1"], says="cut r1 off")
    made.steady(3)
    if proof is not None:
        made.mark("healed", "isolate", id="f1", proof=proof)
    made.mark("recovered", "isolate")
    made.steady(30)
    made.mark("observed", "isolate", **{**UNTOUCHED, **observed})
    return made


def test_an_experiment_is_judged_by_the_budgets_it_brought() -> None:
    made = tried(budgets={"leader_s": 0.5, "converged_s": 2.0}, **OBSERVED["leader-kill"], converged_s=1.0)
    report, found = judged(made.history())
    assert report.verdict is Verdict.PASS
    assert (report.acts[0].title, report.acts[0].seed) == ("Isolate", "7")
    assert "everything as it should be within 2 s" in found
    late = tried(budgets={"converged_s": 2.0}, converged_s=2.5)
    assert failed(late.history()) == ["everything as it should be within 2 s"]
    never = tried(budgets={"converged_s": 2.0}, converged_s=None)
    assert failed(never.history()) == ["everything as it should be within 2 s"]


def test_a_budget_for_what_nobody_looked_at_proves_nothing() -> None:
    report, _ = judged(tried(budgets={"converged_s": 2.0}).history())
    assert report.verdict is Verdict.INCONCLUSIVE


def test_a_trial_that_broke_nothing_proves_nothing() -> None:
    report, found = judged(tried(fault=False).history())
    assert report.verdict is Verdict.INCONCLUSIVE
    assert found["a fault was injected"].verdict is Verdict.INCONCLUSIVE


def test_a_fault_that_left_no_trace_proves_nothing() -> None:
    assert judged(tried(proof={"packets_dropped": 0, "bit": False}).history())[0].verdict is Verdict.INCONCLUSIVE
    assert judged(tried(proof={"packets_dropped": 9, "bit": True}).history())[0].verdict is Verdict.PASS


def test_a_fault_that_cannot_be_made_here_proves_nothing() -> None:
    made = Story()
    made.mark("begin", "isolate", budgets={})
    made.steady(30)
    made.mark("impossible", "isolate", reason="needs root")
    report, found = judged(made.history())
    assert report.verdict is Verdict.INCONCLUSIVE
    assert found["the fault can be made here"].note == "needs root"


def test_where_downtime_is_expected_a_gap_and_unanswered_operations_are_allowed() -> None:
    def cut(budgets: dict[str, Any]) -> History:
        made = tried(budgets=budgets, first_write_s=1.5)
        made.marks.pop()
        made.put(outcome="info", applied=False)
        made.now_ns += 4 * SECOND
        made.mark("observed", "isolate", **UNTOUCHED, first_write_s=1.5)
        return made.history()

    assert failed(cut({})) == ["writes acknowledged again within 1 s", "no operation failed"]
    assert failed(cut({"downtime": True, "first_write_s": 2})) == []
    assert failed(cut({"downtime": True, "first_write_s": 1})) == ["a write acknowledged within 1 s"]


def test_requests_are_asked_for_only_where_the_load_made_them() -> None:
    made = tried()
    made.ops = [op for op in made.ops if op.kind != "http"]
    assert judged(made.history())[0].verdict is Verdict.INCONCLUSIVE
    made.marks[0] = replace(made.marks[0], detail={**made.marks[0].detail, "workload": ["kv", "watch"]})
    report, found = judged(made.history())
    assert report.verdict is Verdict.PASS
    assert "no request failed after one retry" not in found


def test_a_cluster_that_did_not_do_as_expected_fails_however_far_the_trial_came() -> None:
    made = Story()
    made.mark("begin", "isolate", budgets={})
    made.steady(30)
    made.mark("fault", "isolate", id="f1")
    made.mark("deviated", "isolate", what="new leader", text="not within 10 s")
    report, found = judged(made.history())
    assert report.verdict is Verdict.FAIL
    assert found["the cluster did what the experiment expects"].violations == ("new leader: not within 10 s",)


def test_a_cluster_that_was_not_well_to_begin_with_proves_nothing() -> None:
    made = Story()
    made.mark("begin", "isolate", budgets={})
    made.mark("deviated", "isolate", what="steady state", when="before", text="no pods")
    assert judged(made.history())[0].verdict is Verdict.INCONCLUSIVE


def test_where_faults_are_many_each_kind_must_have_left_a_trace_once() -> None:
    made = tried(proof={"bit": False})
    made.mark("fault", "isolate", id="f2", fault="partition", victims=["r2"])
    made.mark("healed", "isolate", id="f2", proof={"bit": True})
    made.steady(30)
    made.mark("observed", "isolate", **UNTOUCHED)
    report, found = judged(made.history())
    assert report.verdict is Verdict.PASS
    assert found["every kind of fault left its trace"].note == "1 of 2 left no trace"


def test_a_fault_without_a_trace_leaves_the_gap_to_be_judged() -> None:
    made = tried(proof={"bit": False})
    made.marks.pop()
    made.now_ns += 2 * SECOND
    made.mark("observed", "isolate", **UNTOUCHED)
    assert failed(made.history()) == ["writes acknowledged again within 1 s"]


def test_where_every_pod_had_a_reason_to_go_there_is_none_to_watch() -> None:
    nobody: dict[str, Any] = {**UNTOUCHED, "pods_watched": 0}
    assert judged(tried(**nobody).history())[0].verdict is Verdict.INCONCLUSIVE
    assert judged(tried(**nobody, pods_excused=6).history())[0].verdict is Verdict.PASS


def test_a_deviation_that_was_seen_outweighs_a_fault_that_could_not_be_made() -> None:
    for order in (("impossible", "deviated"), ("deviated", "impossible")):
        made = Story()
        made.mark("begin", "isolate")
        made.steady(30)
        made.mark("fault", "isolate")
        for name in order:
            detail = {"reason": "needs root"} if name == "impossible" else {"what": "the method", "text": "no leader"}
            made.mark(name, "isolate", **detail)
        report, found = judged(made.history())
        assert report.verdict is Verdict.FAIL
        assert found["the cluster did what the experiment expects"].verdict is Verdict.FAIL
        assert found["the fault can be made here"].verdict is Verdict.INCONCLUSIVE


def claiming(*claims: str, **proved: str) -> dict[str, Finding]:
    made = Story()
    made.mark("begin", "mine", proves=list(claims), workload=["kv"])
    made.steady(30)
    made.mark("fault", "mine", id="1")
    made.steady(30)
    for what, seen in proved.items():
        made.mark("proved", "mine", what=what.replace("_", "-"), seen=seen)
    made.mark("healed", "mine", id="1")
    made.mark("recovered", "mine")
    made.steady(30)
    made.mark("observed", "mine", **UNTOUCHED)
    _, found = judged(made.history())
    return {rule: finding for rule, finding in found.items() if rule.startswith("proven: ")}


@pytest.mark.parametrize(
    ("proved", "verdict"),
    [
        ({}, Verdict.INCONCLUSIVE),
        ({"binds_in_flight": ""}, Verdict.INCONCLUSIVE),
        ({"snapshot_cut_at_kill": "something else"}, Verdict.INCONCLUSIVE),
        ({"binds_in_flight": "3 pods"}, Verdict.PASS),
    ],
)
def test_a_coincidence_that_is_claimed_and_not_proven_proves_nothing(proved: dict[str, str], verdict: Verdict) -> None:
    (finding,) = claiming("binds-in-flight", **proved).values()
    assert finding.verdict is verdict
    assert claiming(**proved) == {}


def test_load_under_a_fault_is_counted_between_its_strike_and_its_healing() -> None:
    (finding,) = claiming("load-under-fault").values()
    assert (finding.verdict, finding.note.split(",")[0]) == (Verdict.PASS, "30 writes acknowledged")
    (finding,) = claiming("faults-overlap").values()
    assert finding.verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize(
    ("states", "verdict"),
    [
        ({"agree": True, "members": ["r1", "r2"], "text": "at revision 7"}, Verdict.PASS),
        ({"agree": False, "members": ["r1", "r2"], "text": "at revision 7 r1 has a"}, Verdict.FAIL),
        ({"agree": None, "members": ["r1", "r2"], "text": "r2 silent"}, Verdict.INCONCLUSIVE),
    ],
)
def test_the_state_hashes_of_all_members_are_part_of_every_verdict(states: dict[str, Any], verdict: Verdict) -> None:
    _, found = judged(played(states=states).history())
    assert found["state hashes agree at an equal revision on all members"].verdict is verdict


def test_a_steady_state_lost_during_a_fault_is_shown_and_judged_only_by_a_budget() -> None:
    during = {"samples": 9, "probes": {"the Service answers": {"asked": 9, "deviated": 3, "longest_s": 2.4}}}
    _, found = judged(played(during=during).history())
    shown = found["steady state during"]
    assert (shown.verdict, "the Service answers: 3 of 9, longest 2.4 s" in shown.note) == (Verdict.PASS, True)
    made = played(during=during)
    begin = made.marks[0]
    made.marks[0] = replace(begin, detail={**begin.detail, "budgets": {"steady_gap_s": 2.0}})
    assert failed(made.history()) == ["steady state during: lost for at most 2 s"]


def test_a_lease_that_could_not_be_granted_or_renewed_counts_as_a_failed_operation_does() -> None:
    made = played()
    history = made.history()
    asked_ns = made.marks[1].at_ns
    for n, outcome in enumerate(("ok", "fail", "info")):
        kind = ("grant", "keepalive", "keepalive")[n]
        history.ops.append(
            Op(9_000 + n, "l1", kind, "e1", "", asked_ns, asked_ns + 1, outcome, part="lease", lease=7)  # type: ignore[arg-type]
        )
    gone = Op(
        9_009, "l1", "revoke", "e1", "", asked_ns, asked_ns + 1, "fail", lease=7, error="requested lease not found"
    )
    history.ops.append(gone)
    assert failed(history) == ["no lease operation failed"]
    begin = history.marks[0]
    history.marks[0] = replace(begin, detail={**begin.detail, "budgets": {"leases_failed": 2}})
    assert failed(history) == []
    history.marks[0] = begin
    history.ops.append(Op(9_010, "l1", "keepalive", "e2", "", asked_ns + 2, asked_ns + 3, "ok", lease=7, ttl_s=2))
    assert failed(history) == [], "a renewal that another replica answers at once is made good"


@pytest.mark.parametrize(("seen", "fails"), [(2, []), (1, ["every killed container started again"])])
def test_killed_containers_start_again_as_often_as_they_were_killed(seen: int, fails: list[str]) -> None:
    killed: dict[str, Any] = {
        "containers_killed": 2,
        "containers_restarts_expected": 2,
        "containers_restarts_seen": seen,
    }
    assert failed(played(**killed).history()) == fails
