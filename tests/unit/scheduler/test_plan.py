"""Planning: which nodes a pod fits, which it prefers, and what is said when none fits. Pure: no API, no loop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.base.rand import SeededRand
from controlplane.pb.k8s.core_v1_pb2 import Node, Pod
from controlplane.scheduler.plan import Plan, Strategy, plan
from controlplane.scheduler.table import NodeTable
from tests.unit.scheduler.objects import candidates, node, pod, table


def run(nodes: NodeTable, *pods: Pod, strategy: Strategy = Strategy.LEAST_ALLOCATED, seed: int = 1) -> Plan:
    return plan(nodes.snapshot(), candidates(*pods), SeededRand(seed), strategy)


def where(nodes: NodeTable, *pods: Pod, strategy: Strategy = Strategy.LEAST_ALLOCATED) -> list[str]:
    decided = run(nodes, *pods, strategy=strategy)
    assert not decided.failures, decided.failures[0].message
    return [p.node_name for p in decided.placements]


def why(nodes: NodeTable, made: Pod) -> str:
    decided = run(nodes, made)
    assert not decided.placements
    return decided.failures[0].message


def with_selector(made: Pod, key: str, value: str) -> Pod:
    made.spec.nodeSelector[key] = value
    return made


def with_requirement(made: Pod, key: str, operator: str, *values: str) -> Pod:
    terms = made.spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms
    terms.add().matchExpressions.add(key=key, operator=operator, values=values)
    return made


def with_toleration(made: Pod, key: str, operator: str = "Exists", value: str = "", effect: str = "") -> Pod:
    made.spec.tolerations.add(key=key, operator=operator, value=value, effect=effect)
    return made


def with_host_port(made: Pod, port: int, ip: str = "") -> Pod:
    made.spec.containers[0].ports.add(hostPort=port, containerPort=port, hostIP=ip)
    return made


def apart(made: Pod, key: str = "kubernetes.io/hostname", app: str = "x") -> Pod:
    terms = made.spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution
    terms.add(topologyKey=key).labelSelector.matchLabels["app"] = app
    return made


def near(made: Pod, key: str, app: str = "x") -> Pod:
    terms = made.spec.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution
    terms.add(topologyKey=key).labelSelector.matchLabels["app"] = app
    return made


def spread(made: Pod, key: str, when: str = "DoNotSchedule", skew: int = 1) -> Pod:
    constraint = made.spec.topologySpreadConstraints.add(maxSkew=skew, topologyKey=key, whenUnsatisfiable=when)
    constraint.labelSelector.matchLabels["app"] = "x"
    return made


ZONES = {"zone": "a"}, {"zone": "b"}


# -- filters ------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        pytest.param(pod("p", cpu="2"), {"big"}, id="cpu"),
        pytest.param(pod("p", memory="3Gi"), {"big"}, id="memory"),
        pytest.param(pod("p", cpu="1", memory="2Gi"), {"big", "small"}, id="exactly all of it fits"),
        pytest.param(pod("p", example__gpu="1"), {"small"}, id="extended resource"),
        pytest.param(with_selector(pod("p"), "disk", "ssd"), {"big"}, id="node selector"),
        pytest.param(with_requirement(pod("p"), "disk", "In", "ssd", "nvme"), {"big"}, id="In"),
        pytest.param(with_requirement(pod("p"), "disk", "NotIn", "ssd"), {"small"}, id="NotIn takes the unlabelled"),
        pytest.param(with_requirement(pod("p"), "disk", "Exists"), {"big"}, id="Exists"),
        pytest.param(with_requirement(pod("p"), "disk", "DoesNotExist"), {"small"}, id="DoesNotExist"),
        pytest.param(with_requirement(pod("p"), "cores", "Gt", "7"), {"big"}, id="Gt"),
        pytest.param(with_requirement(pod("p"), "cores", "Lt", "8"), {"small"}, id="Lt"),
        pytest.param(
            with_requirement(with_requirement(pod("p"), "cores", "In", "2"), "cores", "In", "8"),
            {"big", "small"},
            id="terms are alternatives",
        ),
        pytest.param(pod("p", node_name="small"), {"small"}, id="node name"),
    ],
)
def test_a_pod_goes_only_where_it_fits(made: Pod, expected: set[str]) -> None:
    nodes = table(
        node("big", cpu="4", labels={"disk": "ssd", "cores": "8"}),
        node("small", cpu="1", memory="2Gi", labels={"cores": "2"}, example__gpu="2"),
    )
    assert {run(nodes, made, seed=s).placements[0].node_name for s in range(12)} <= expected
    for name in {"big", "small"} - expected:
        nodes.remove_node(name)
    assert where(nodes, made)[0] in expected
    for name in expected:
        nodes.remove_node(name)
    assert run(nodes, made).failures


TAINT = ("dedicated", "gpu", "NoSchedule")


@pytest.mark.parametrize(
    ("toleration", "fits"),
    [
        pytest.param(None, False, id="none"),
        pytest.param(("dedicated", "Exists", "", ""), True, id="key exists"),
        pytest.param(("dedicated", "Equal", "gpu", ""), True, id="equal"),
        pytest.param(("dedicated", "Equal", "cpu", ""), False, id="other value"),
        pytest.param(("dedicated", "Exists", "", "NoExecute"), False, id="other effect"),
        pytest.param(("", "Exists", "", ""), True, id="everything"),
    ],
)
def test_a_taint_keeps_pods_off_unless_tolerated(toleration: tuple[str, str, str, str] | None, fits: bool) -> None:
    nodes = table(node("n", taints=(TAINT,)))
    made = pod("p") if toleration is None else with_toleration(pod("p"), *toleration)
    assert bool(run(nodes, made).placements) == fits


@pytest.mark.parametrize(
    ("there", "wanted", "fits"),
    [
        pytest.param("", "", False, id="same port"),
        pytest.param("127.0.0.1", "127.0.0.2", True, id="other address"),
        pytest.param("127.0.0.1", "", False, id="every address collides with one"),
    ],
)
def test_host_ports_are_given_once(there: str, wanted: str, fits: bool) -> None:
    holder = with_host_port(pod("holder", node_name="n"), 80, there)
    nodes = table(node("n"), pods=(holder,))
    assert bool(run(nodes, with_host_port(pod("p"), 80, wanted)).placements) == fits


def test_pods_of_one_plan_see_each_other() -> None:
    nodes = table(node("a", cpu="1"), node("b", cpu="1"))
    decided = run(nodes, *(pod(f"p{i}", cpu="600m", owner="rs") for i in range(3)))
    assert sorted(p.node_name for p in decided.placements) == ["a", "b"]
    assert decided.failures[0].message == "0/2 nodes are available: 2 Insufficient cpu."


def test_anti_affinity_keeps_pods_apart_also_for_those_that_do_not_ask() -> None:
    nodes = table(node("a"), node("b"))
    decided = run(nodes, *(apart(pod(f"p{i}", labels={"app": "x"})) for i in range(3)))
    assert sorted(p.node_name for p in decided.placements) == ["a", "b"]
    assert "didn't match pod anti-affinity rules" in decided.failures[0].message
    holder = apart(pod("holder", labels={"app": "y"}, node_name="a"))
    assert where(table(node("a"), node("b"), pods=(holder,)), pod("q", labels={"app": "x"})) == ["b"]


def test_affinity_keeps_pods_in_one_zone_and_the_first_may_start_anywhere() -> None:
    nodes = table(*(node(f"n{i}", labels=ZONES[i % 2]) for i in range(6)))
    together = where(nodes, *(near(pod(f"p{i}", labels={"app": "x"}), "zone") for i in range(6)))
    assert len({int(name[1:]) % 2 for name in together}) == 1
    assert "didn't match pod affinity rules" in why(nodes, near(pod("q", labels={"app": "z"}), "zone"))


def test_topology_spread_bounds_the_skew() -> None:
    nodes = table(node("a0", labels=ZONES[0]), node("b0", labels=ZONES[1]), node("b1", labels=ZONES[1]))
    placed = where(nodes, *(spread(pod(f"p{i}", labels={"app": "x"}), "zone") for i in range(8)))
    assert Counter(name[0] for name in placed) == {"a": 4, "b": 4}


def test_topology_spread_leaves_out_nodes_without_the_label_and_says_so() -> None:
    assert why(table(node("n")), spread(pod("p", labels={"app": "x"}), "zone")) == (
        "0/1 nodes are available: 1 node(s) didn't match pod topology spread constraints (missing required label)."
    )


# -- scores ------------------------------------------------------------


def test_the_emptier_node_is_taken_or_the_fuller_one_when_packing() -> None:
    nodes = table(node("full"), node("empty"), pods=(pod("x", cpu="3", memory="6Gi", node_name="full"),))
    assert where(nodes, pod("p", cpu="100m")) == ["empty"]
    assert where(nodes, pod("p", cpu="100m"), strategy=Strategy.MOST_ALLOCATED) == ["full"]


def test_pods_of_one_controller_spread_even_onto_fuller_nodes() -> None:
    nodes = table(node("a"), node("b"), pods=(pod("x", cpu="1", node_name="b"),))
    assert sorted(where(nodes, *(pod(f"p{i}", cpu="10m", owner="rs") for i in range(4)))) == ["a", "a", "b", "b"]


def test_preferred_affinity_and_soft_taints_count() -> None:
    nodes = table(
        node("plain"), node("ssd", labels={"disk": "ssd"}), node("soft", taints=(("k", "v", "PreferNoSchedule"),))
    )
    made = pod("p")
    preferred = made.spec.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution.add(weight=10)
    preferred.preference.matchExpressions.add(key="disk", operator="Exists")
    assert where(nodes, made) == ["ssd"]
    assert {run(nodes, pod("q"), seed=s).placements[0].node_name for s in range(20)} == {"plain", "ssd"}


def test_equal_nodes_are_drawn_by_the_given_randomness() -> None:
    nodes = table(*(node(f"n{i}") for i in range(20)))
    assert where(nodes, pod("p")) == where(nodes, pod("p"))
    assert len({run(nodes, pod("p"), seed=s).placements[0].node_name for s in range(30)}) > 5


# -- explanations ------------------------------------------------------------


def taken(name: str) -> Node:
    return node(name, cpu="1")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: (), "no nodes available to schedule pods", id="no nodes"),
        pytest.param(
            lambda: (node("a", cpu="1"), node("b", cpu="1", memory="1Gi"), node("c", taints=(TAINT,))),
            "0/3 nodes are available: 1 Insufficient memory, "
            "1 node(s) had untolerated taint {dedicated: gpu}, 2 Insufficient cpu.",
            id="a node counts under each resource it lacks",
        ),
        pytest.param(
            lambda: (node("a", unschedulable=True), node("b", ready=False), node("c", pods="0")),
            "0/3 nodes are available: 1 Insufficient cpu, 1 Too many pods, 1 node(s) were not ready, "
            "1 node(s) were unschedulable.",
            id="cordoned, not ready, full",
        ),
    ],
)
def test_a_pod_that_fits_nowhere_is_told_why_per_node(make: Callable[[], tuple[Node, ...]], message: str) -> None:
    assert why(table(*make()), pod("p", cpu="5", memory="2Gi")) == message


# -- invariants ------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 8), st.integers(1, 6)), min_size=1, max_size=6),
    asked=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 3)), max_size=40),
    seed=st.integers(0, 5),
)
def test_no_node_is_ever_overcommitted_and_no_pod_that_fits_is_refused(
    sizes: list[tuple[int, int]], asked: list[tuple[int, int]], seed: int
) -> None:
    nodes = table(*(node(f"n{i}", cpu=str(cpu), memory="64Gi", pods=str(n)) for i, (cpu, n) in enumerate(sizes)))
    pods = [pod(f"p{i}", cpu=f"{cpu}m", owner=f"rs{owner}") for i, (cpu, owner) in enumerate(asked)]
    decided = run(nodes, *pods, seed=seed)
    cpu_left = {f"n{i}": cpu * 1000 for i, (cpu, _) in enumerate(sizes)}
    pods_left = {f"n{i}": n for i, (_, n) in enumerate(sizes)}
    asked_by = {f"uid-p{i}": cpu for i, (cpu, _) in enumerate(asked)}
    for placement in decided.placements:
        cpu_left[placement.node_name] -= asked_by[placement.candidate.facts.uid]
        pods_left[placement.node_name] -= 1
    assert min(cpu_left.values()) >= 0
    assert min(pods_left.values()) >= 0
    for failure in decided.failures:
        need = asked_by[failure.candidate.facts.uid]
        assert not any(cpu_left[n] >= need and pods_left[n] >= 1 for n in cpu_left)


class Pick(SeededRand):
    """Takes the n-th of what there is to draw from."""

    def __init__(self, n: int) -> None:
        super().__init__(0)
        self._n = n

    def randint(self, low: int, high: int) -> int:
        return min(low + self._n, high)


@settings(max_examples=40, deadline=None)
@given(
    owners=st.lists(st.integers(0, 3), min_size=1, max_size=40),
    packed=st.booleans(),
    seed=st.integers(0, 3),
)
def test_every_pod_of_a_batch_gets_a_node_that_planning_it_alone_could_have_chosen(
    owners: list[int], packed: bool, seed: int
) -> None:
    """The shortcuts of a batch (rows refreshed only where something changed, ties dealt out) change no choice."""
    strategy = Strategy.MOST_ALLOCATED if packed else Strategy.LEAST_ALLOCATED
    pods = [pod(f"p{i}", cpu="900m", memory="64Mi", owner=f"rs{owner}") for i, owner in enumerate(owners)]
    batch = plan(table(*(node(f"n{i}") for i in range(5))).snapshot(), candidates(*pods), SeededRand(seed), strategy)
    alone = table(*(node(f"n{i}") for i in range(5)))
    for placement in batch.placements:
        plans = [plan(alone.snapshot(), [placement.candidate], Pick(n), strategy) for n in range(5)]
        assert placement.node_name in {p.placements[0].node_name for p in plans}
        alone.assume(placement.candidate.facts, placement.node_name)
    assert len(batch.placements) == min(len(pods), 20)
