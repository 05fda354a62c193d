"""False evictions, planted and found; and those that were right."""

from __future__ import annotations

import pytest

from chaos.checkers.evictions import EVICTED_AFTER_S, LATE_S, SILENT_S, Span, check_evictions, pauses, reasons
from chaos.findings import Finding, Verdict
from chaos.nodewatch import UNREACHABLE
from chaos.records import Mark, NodeSeen, PodSeen
from controlplane.api.sessions import SessionConfig
from controlplane.controllers.nodelifecycle_decide import UNREACHABLE_TAINT, LifecycleConfig

S = 1_000_000_000


def node(
    at_s: float, name: str = "node-1", *, heard: bool = True, since_s: float = 0, condemned: bool = False
) -> NodeSeen:
    return NodeSeen(int(at_s * S), name, heard=heard, since_ns=int(since_s * S), condemned=condemned)


#: Two pods on node-1, which go at 14 s, and one on node-2, which stays.
PODS = [
    PodSeen(S, "web", "u1", "web-1", "node-1"), PodSeen(S, "web", "u2", "web-2", "node-1"),
    PodSeen(S, "web", "u3", "web-3", "node-2"),
    PodSeen(14 * S, "web", "u1", "web-1", gone=True), PodSeen(14 * S, "web", "u2", "web-2", "node-1", deleting=True),
]  # fmt: skip


def judged(
    *nodes: NodeSeen,
    pods: list[PodSeen] = PODS,
    excuses: dict[str, list[Span]] | None = None,
    paused: dict[str, list[Span]] | None = None,
) -> Finding:
    found = check_evictions(nodes, pods, excuses or {}, paused or {}, begin_ns=0, end_ns=30 * S)
    assert found is not None
    return found


def test_pods_of_a_node_that_was_heard_all_the_time_are_a_false_eviction() -> None:
    found = judged(node(1), node(1, "node-2"), node(13.9, condemned=True), node(16))
    assert (found.verdict, found.checked) == (Verdict.FAIL, 2)
    assert found.violations == (
        "2 pods of node-1, which was given up at 13.900 s: it had been away for 0.0 s at most, and 2 s are waited for",
    )


@pytest.mark.parametrize(("away_s", "verdict"), [(0.9, Verdict.FAIL), (1.9, Verdict.FAIL), (2.1, Verdict.PASS)])
def test_a_node_that_came_back_in_time_keeps_its_pods(away_s: float, verdict: Verdict) -> None:
    """An agent that is paused, or killed and started, and back before the time is up."""
    found = judged(
        node(1), node(10.5, heard=False, since_s=10), node(10 + away_s), node(13.9, condemned=True), node(16)
    )  # fmt: skip
    assert found.verdict is verdict, found


@pytest.mark.parametrize(("away_s", "verdict"), [(2.1, Verdict.FAIL), (3.4, Verdict.FAIL), (3.6, Verdict.PASS)])
def test_a_paused_agent_is_waited_for_longer_as_its_session_is_not_broken(away_s: float, verdict: Verdict) -> None:
    pause = Mark("x", 1, "fault", 10 * S, {"fault": "pause", "victims": ["node-1"]})
    kill = Mark("x", 1, "fault", 11 * S, {"fault": "kill", "victims": ["node-1"]})
    healed = int((10 + away_s) * S)
    seen = (node(1), node(11, heard=False, since_s=9.9), node(9.9 + away_s), node(13.9, condemned=True), node(16))
    assert judged(*seen, paused=pauses([(pause, healed)])).verdict is verdict
    # Killed in the middle of it, its session is broken as well.
    assert pauses([(pause, healed), (kill, 12 * S)]) == {}
    assert judged(*seen, paused=pauses([(pause, healed), (kill, 12 * S)])).verdict is Verdict.PASS


def test_a_dead_node_is_given_up_and_told() -> None:
    found = judged(node(1), node(10.5, heard=False, since_s=10), node(13.9, heard=False, since_s=10, condemned=True))
    assert (found.verdict, found.note) == (Verdict.PASS, "2 pods of 1 nodes that were given up evicted")


def test_a_short_absence_without_consequences_is_told() -> None:
    found = judged(node(1), node(10.5, heard=False, since_s=10), node(11.2), pods=PODS[:3])
    assert (found.verdict, found.note) == (Verdict.PASS, "1 shorter absences, the longest 1.2 s")


def test_an_absence_of_long_ago_excuses_nothing() -> None:
    found = judged(node(1), node(2.5, heard=False, since_s=2), node(7), node(7 + LATE_S + 0.5, condemned=True))
    assert found.verdict is Verdict.FAIL


def test_who_was_given_up_and_had_no_pods_lost_none() -> None:
    assert judged(node(1), node(13.9, condemned=True), node(14.5), pods=PODS[:3]).verdict is Verdict.PASS


def test_pods_that_went_for_another_reason_are_no_eviction() -> None:
    """Drained, scaled down, rolled out: nobody gave the node up."""
    assert judged(node(1), node(1, "node-2")).verdict is Verdict.PASS


def test_a_cut_and_a_goodbye_are_reasons_and_a_pause_is_none() -> None:
    cut = Mark("x", 1, "fault", 10 * S, {"fault": "partition", "victims": ["r1"], "excused": ["node-1"]})
    stop = Mark("x", 1, "fault", 10 * S, {"fault": "stop", "victims": ["node-1"]})
    lost = Mark("x", 1, "fault", 10 * S, {"fault": "lose-control-plane", "victims": ["r1", "r2", "r3"]})
    pause = Mark("x", 1, "fault", 10 * S, {"fault": "pause", "victims": ["node-1"], "excused": []})
    seen = (node(1), node(13.9, condemned=True), node(16))
    for mark, verdict in ((cut, Verdict.PASS), (stop, Verdict.PASS), (lost, Verdict.PASS), (pause, Verdict.FAIL)):
        assert judged(*seen, excuses=reasons([(mark, 15 * S)])).verdict is verdict, mark
    assert judged(*seen, excuses={"node-2": [Span(10 * S, 15 * S)]}).verdict is Verdict.FAIL


def test_where_nobody_looked_nothing_is_said() -> None:
    assert check_evictions([], PODS, {}, {}, begin_ns=0, end_ns=30 * S) is None


def test_it_waits_as_long_and_looks_for_the_taint_that_the_controller_does() -> None:
    config = LifecycleConfig()
    assert config.reopen_grace_s + config.not_ready_after_s == EVICTED_AFTER_S
    heartbeat_s = SessionConfig().heartbeat_interval_ms / 1000
    assert config.missed_s + config.not_ready_after_s - heartbeat_s == SILENT_S
    assert UNREACHABLE == UNREACHABLE_TAINT
