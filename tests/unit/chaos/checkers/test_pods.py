"""Deployments under change: too many pods, a pod in two places and an end that is not as wanted are caught."""

from __future__ import annotations

from chaos.checkers.pods import check_pods
from chaos.findings import Finding, Verdict
from chaos.records import Header, History, Mark, PodSeen, ProcessSeen

SECOND = 1_000_000_000
MANY = "deployments: never more pods than wanted and the surge"
PLACES = "deployments: no pod in two places"
END = "deployments: as wanted in the end"


class Story:
    """Two pods wanted, a surge of one."""

    def __init__(self) -> None:
        self.history = History(Header("r", "/p/", "now", []))
        self.at_s = 1.0
        self.want(2)
        for uid in ("a", "b"):
            self.runs(uid)

    def want(self, replicas: int) -> None:
        detail = {"workload": "d", "replicas": replicas, "surge": 1}
        self.history.marks.append(Mark("deploy", 0, "wanted", self._now(), detail))

    def runs(self, uid: str, node: str = "node-1") -> None:
        self.history.pods.append(PodSeen(self._now(), "d", uid, f"d-{uid}", node, ready=True))
        self.history.processes.append(ProcessSeen(self._now(), "d", uid, node, running=True))
        self.at_s += 0.1

    def ends(self, uid: str, node: str = "node-1") -> None:
        self.history.processes.append(ProcessSeen(self._now(), "d", uid, node, running=False))
        self.at_s += 0.1

    def goes(self, uid: str) -> None:
        self.history.pods.append(PodSeen(self._now(), "d", uid, f"d-{uid}", "node-1", deleting=True))
        self.at_s += 0.1

    def settled(self, ready: int, settled_s: float | None) -> None:
        detail = {"workload": "d", "wanted": 2, "ready": ready, "settled_s": settled_s}
        self.history.marks.append(Mark("deploy", 0, "settled", self._now(), detail))

    def findings(self) -> dict[str, Finding]:
        return {finding.rule: finding for finding in check_pods(self.history)}

    def failed(self) -> set[str]:
        return {rule for rule, finding in self.findings().items() if finding.verdict is Verdict.FAIL}

    def _now(self) -> int:
        return int(self.at_s * SECOND)


def test_a_rollout_within_its_surge_passes() -> None:
    story = Story()
    story.runs("c")
    story.goes("a")
    story.runs("d")  # while the process of a still runs: it is going
    story.ends("a")
    story.goes("b")
    story.ends("b")
    story.settled(2, 1.5)
    assert {finding.verdict for finding in story.findings().values()} == {Verdict.PASS}
    assert story.findings()[END].note == "1.50 s after the load ended"


def test_one_pod_too_many_is_caught() -> None:
    story = Story()
    story.runs("c")
    story.runs("d")
    assert story.failed() == {MANY}


def test_a_pod_whose_process_lives_on_counts_until_it_is_said_to_go() -> None:
    story = Story()
    story.runs("c")
    story.at_s += 1
    story.runs("d")
    story.goes("a")
    assert story.failed() == {MANY}


def test_a_smaller_number_has_some_time_to_take_effect() -> None:
    story = Story()
    story.want(5)
    for uid in "cde":
        story.runs(uid)
    story.want(2)
    story.at_s += 5
    story.runs("x")
    story.ends("x")
    assert story.failed() == set()
    story.at_s += 10
    story.runs("y")
    assert story.failed() == {MANY}


def test_the_same_pod_on_two_nodes_is_caught() -> None:
    story = Story()
    story.runs("a", node="node-2")
    assert story.failed() == {PLACES}


def test_a_pod_that_moved_after_it_ended_is_in_one_place() -> None:
    story = Story()
    story.ends("a")
    story.runs("a", node="node-2")
    assert story.failed() == set()


def test_an_end_that_is_not_as_wanted_is_caught_and_one_that_nobody_saw_proves_nothing() -> None:
    story = Story()
    assert story.findings()[END].verdict is Verdict.INCONCLUSIVE
    story.settled(1, None)
    assert story.failed() == {END}


def test_a_history_without_deployments_is_not_asked_about_them() -> None:
    assert check_pods(History(Header("r", "/p/", "now", []))) == []
