"""The node table: what a node has, what is placed on it, and that counts never drift."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.scheduler.resources import pod_requests
from controlplane.scheduler.table import NodeTable, PodFacts, Snapshot
from tests.unit.scheduler.objects import node, pod, table


def cpu_used(snapshot: Snapshot, name: str) -> int:
    return int(snapshot.used["cpu"][snapshot.rows[name]])


def test_a_pod_counts_once_however_often_it_is_assumed_confirmed_or_moved() -> None:
    made = table(node("a"), node("b"))
    p = pod("p", cpu="500m")
    made.assume(PodFacts.of(p), "a")
    p.spec.nodeName = "a"
    made.set_pod(p)
    made.set_pod(p)
    assert cpu_used(made.snapshot(), "a") == 500
    p.spec.nodeName = "b"
    made.set_pod(p)
    assert (cpu_used(made.snapshot(), "a"), cpu_used(made.snapshot(), "b")) == (0, 500)
    p.status.phase = "Succeeded"
    made.set_pod(p)
    assert cpu_used(made.snapshot(), "b") == 0


def test_pods_of_a_node_that_goes_and_comes_back_still_count() -> None:
    made = table(node("a"), pods=(pod("p", cpu="1", node_name="a"), pod("early", cpu="1", node_name="late")))
    made.remove_node("a")
    made.set_node(node("late"))
    made.set_node(node("a"))
    assert (cpu_used(made.snapshot(), "a"), cpu_used(made.snapshot(), "late")) == (1000, 1000)


def test_a_snapshot_used_up_by_a_plan_leaves_the_table_as_it_was() -> None:
    made = table(node("a"), pods=(pod("p", cpu="1", owner="rs", node_name="a"),))
    snapshot = made.snapshot()
    snapshot.place(PodFacts.of(pod("q", cpu="1", owner="rs")), snapshot.rows["a"])
    snapshot.place(PodFacts.of(pod("r", cpu="1", owner="rs")), snapshot.rows["a"])
    assert cpu_used(snapshot, "a") == 3000
    assert sum(int(c.sum()) for c in snapshot.groups.values()) == 3
    fresh = made.snapshot()
    assert cpu_used(fresh, "a") == 1000
    assert sum(int(c.sum()) for c in fresh.groups.values()) == 1


def test_label_values_of_nodes_long_gone_are_forgotten() -> None:
    made = NodeTable()
    for i in range(1_000):
        made.set_node(node(f"n{i}"))
        made.remove_node(f"n{i}")
    made.set_node(node("last"))
    column = made.snapshot().labels["kubernetes.io/hostname"]
    assert len(column.values) < 300
    assert column.codes[made.snapshot().rows["last"]] == column.values["last"]


def test_requests_count_limits_init_containers_sidecars_and_overhead() -> None:
    made = pod("p", cpu="100m")
    second = made.spec.containers.add()
    second.resources.limits["cpu"].string = "200m"
    sidecar = made.spec.initContainers.add(restartPolicy="Always")
    sidecar.resources.requests["cpu"].string = "50m"
    init = made.spec.initContainers.add()
    init.resources.requests["cpu"].string = "1"
    made.spec.overhead["cpu"].string = "7m"
    assert pod_requests(made)["cpu"] == 1057


STEPS = st.lists(
    st.tuples(st.sampled_from(["node", "gone", "pod", "unpod"]), st.integers(0, 90), st.integers(0, 90)), max_size=60
)


@settings(max_examples=60, deadline=None)
@given(steps=STEPS)
def test_usage_is_always_the_sum_of_the_pods_on_each_node(steps: list[tuple[str, int, int]]) -> None:
    made = NodeTable()
    nodes: set[str] = set()
    homes: dict[str, str] = {}
    for what, i, j in steps:
        if what == "node":
            made.set_node(node(f"n{i}"))
            nodes.add(f"n{i}")
        elif what == "gone":
            made.remove_node(f"n{i}")
            nodes.discard(f"n{i}")
        elif what == "pod":
            made.set_pod(pod(f"p{i}", cpu=f"{i}m", node_name=f"n{j}", owner=f"rs{i % 3}"))
            homes[f"p{i}"] = f"n{j}"
        else:
            made.remove_pod(f"uid-p{i}")
            homes.pop(f"p{i}", None)
    snapshot = made.snapshot()
    assert set(snapshot.rows) == nodes
    for name in nodes:
        here = [p for p, home in homes.items() if home == name]
        assert cpu_used(snapshot, name) == sum(int(p[1:]) for p in here)
        assert int(snapshot.used["pods"][snapshot.rows[name]]) == len(here)
    everywhere = sum(int(c.sum()) for c in snapshot.groups.values())
    assert everywhere == sum(home in nodes for home in homes.values())
    assert not np.any(snapshot.used["cpu"][~snapshot.present])
