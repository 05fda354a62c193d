"""Verdicts and the brake: tables of evidence and what follows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controlplane.api.session_table import Contact
from controlplane.controllers.nodelifecycle_decide import (
    SUSPECT_TAINT,
    UNREACHABLE_TAINT,
    EvictPods,
    Health,
    LifecycleConfig,
    MarkNode,
    decide,
    judge,
    marked,
    pods_to_evict,
)
from controlplane.pb.k8s.core_v1_pb2 import Node, Pod

CONFIG = LifecycleConfig(
    reopen_grace_s=0.4,
    missed_s=2.5,
    replica_stale_s=1.0,
    replica_grace_s=3.5,
    leader_grace_s=4.0,
    goodbye_grace_s=15.0,
    not_ready_after_s=1.5,
)
#: Heard at 100 through a replica that reported at 100; the table was armed at 50.
HEARD = Contact(known_since_s=50.0, last_seen_s=100.0, open=True, source_heard_s=100.0)
BROKEN = Contact(known_since_s=50.0, last_seen_s=100.0, source_heard_s=100.0, broken_since_s=100.0)
NEVER = Contact(known_since_s=100.0)


def at(contact: Contact | None, after_s: float, *, source_after_s: float | None = None) -> Health:
    """The verdict ``after_s`` after 100, with the replica's last report at ``source_after_s``."""
    if contact is not None and contact.source_heard_s is not None:
        contact = replace(contact, source_heard_s=100.0 + (after_s if source_after_s is None else source_after_s))
    return judge(contact, 100.0 + after_s, CONFIG).health


@pytest.mark.parametrize(
    ("contact", "after_s", "health"),
    [
        pytest.param(None, 999.0, Health.UNSURE, id="never expected"),
        pytest.param(HEARD, 0.0, Health.ALIVE, id="heard now"),
        pytest.param(HEARD, 2.4, Health.ALIVE, id="a few heartbeats missed"),
        pytest.param(HEARD, 2.5, Health.SUSPECT, id="too many missed"),
        pytest.param(HEARD, 3.9, Health.SUSPECT, id="still suspect"),
        pytest.param(HEARD, 4.0, Health.DEAD, id="silent for good"),
        pytest.param(BROKEN, 0.3, Health.UNSURE, id="just broken"),
        pytest.param(BROKEN, 0.4, Health.SUSPECT, id="broken and not reopened"),
        pytest.param(BROKEN, 1.8, Health.SUSPECT, id="not dead yet"),
        pytest.param(BROKEN, 1.9, Health.DEAD, id="broken for good"),
        pytest.param(replace(BROKEN, departed=True), 14.9, Health.UNSURE, id="said goodbye"),
        pytest.param(replace(BROKEN, departed=True), 15.0, Health.SUSPECT, id="did not come back"),
        pytest.param(replace(BROKEN, departed=True, drained=True), 0.0, Health.DEAD, id="left nothing behind"),
        pytest.param(NEVER, 3.9, Health.UNSURE, id="a new leader listens first"),
        pytest.param(NEVER, 4.0, Health.SUSPECT, id="nobody ever heard from it"),
        pytest.param(NEVER, 5.5, Health.DEAD, id="nor later"),
        pytest.param(replace(HEARD, open=False), 3.4, Health.UNSURE, id="its replica started again"),
        pytest.param(replace(HEARD, open=False), 3.5, Health.SUSPECT, id="and it went nowhere"),
    ],
)
def test_verdict(contact: Contact | None, after_s: float, health: Health) -> None:
    assert at(contact, after_s) is health


@pytest.mark.parametrize("after_s", [0.9, 1.1, 2.5, 3.4])
def test_a_silent_replica_makes_none_of_its_nodes_suspect_while_they_have_time_to_move(after_s: float) -> None:
    assert at(HEARD, after_s, source_after_s=0.0) in (Health.ALIVE, Health.UNSURE)


def test_a_node_that_died_with_its_replica_is_found_all_the_same() -> None:
    assert at(HEARD, 3.5, source_after_s=0.0) is Health.SUSPECT
    assert at(HEARD, 5.0, source_after_s=0.0) is Health.DEAD


def test_the_default_thresholds_fit_together() -> None:
    config = LifecycleConfig()
    heartbeat_s = report_s = 0.5
    agent_moves_s = 1.0
    isolation_s = 1.5
    assert config.missed_s > 2 * (heartbeat_s + report_s)
    # A session may be silent by a heartbeat and its report late by an interval before the replica counts as silent.
    assert config.missed_s > heartbeat_s + config.replica_stale_s
    assert config.replica_grace_s > isolation_s + agent_moves_s
    assert config.reopen_grace_s + config.not_ready_after_s <= 2.0


# -- intents -------------------------------------------------------------------------------------------------------


def node(name: str, *, ready: str = "True", suspect: str = "", taints: tuple[tuple[str, str], ...] = ()) -> Node:
    n = Node()
    n.metadata.name = name
    n.status.conditions.add(type="Ready", status=ready)
    if suspect:
        n.status.conditions.add(type="Suspect", status=suspect)
    for key, effect in taints:
        n.spec.taints.add(key=key, effect=effect)
    return n


def intents_for(nodes: list[Node], **contacts: Contact) -> tuple[list[str], bool]:
    """What is decided at 200, as text, and whether the brake is on."""
    decision = decide(nodes, contacts.get, 200.0, CONFIG)
    texts = []
    for intent in decision.intents:
        if isinstance(intent, MarkNode):
            texts.append(f"{intent.node} {intent.health.value}{' evict' if intent.evict else ''}")
        else:
            assert isinstance(intent, EvictPods)
            texts.append(f"{intent.node} pods")
    return texts, decision.brake


ALIVE = Contact(known_since_s=50.0, last_seen_s=200.0, open=True, source_heard_s=200.0)
SUSPECTED = Contact(known_since_s=50.0, last_seen_s=199.0, source_heard_s=200.0, broken_since_s=199.0)
DEAD = Contact(known_since_s=50.0, last_seen_s=190.0, source_heard_s=200.0, broken_since_s=190.0)
UNSURE = Contact(known_since_s=200.0)
DOWN_TAINTS = (SUSPECT_TAINT, UNREACHABLE_TAINT)


def test_a_live_node_that_says_so_needs_nothing() -> None:
    assert intents_for([node("a")], a=ALIVE) == ([], False)


def test_each_step_down_is_one_mark_and_the_last_one_evicts() -> None:
    others = [node("b"), node("c")]
    alive = {"b": ALIVE, "c": ALIVE}
    assert intents_for([node("a"), *others], a=SUSPECTED, **alive) == (["a suspect"], False)
    suspect = node("a", suspect="True", taints=(SUSPECT_TAINT,))
    assert intents_for([suspect, *others], a=SUSPECTED, **alive) == ([], False)
    assert intents_for([suspect, *others], a=DEAD, **alive) == (["a dead evict", "a pods"], False)
    down = node("a", ready="Unknown", suspect="True", taints=DOWN_TAINTS)
    assert intents_for([down, *others], a=DEAD, **alive) == (["a pods"], False)


def test_a_node_that_is_heard_again_is_cleared_of_everything() -> None:
    down = node("a", ready="Unknown", suspect="True", taints=DOWN_TAINTS)
    assert intents_for([down], a=ALIVE) == (["a alive"], False)


def test_without_evidence_nothing_changes_in_either_direction() -> None:
    down = node("a", ready="Unknown", suspect="True", taints=DOWN_TAINTS)
    assert intents_for([down, node("b")], a=UNSURE, b=UNSURE) == ([], False)


def test_a_new_leader_suspecting_a_node_found_dead_before_changes_nothing() -> None:
    down = node("a", ready="Unknown", suspect="True", taints=DOWN_TAINTS)
    assert intents_for([down, node("b")], a=SUSPECTED, b=ALIVE) == ([], False)


@pytest.mark.parametrize(
    ("dead", "alive", "brake"),
    [(1, 0, False), (2, 0, False), (1, 2, False), (2, 1, True), (3, 0, True), (5, 4, True), (5, 5, False)],
)
def test_the_brake_is_on_when_most_of_at_least_three_nodes_are_down_at_once(dead: int, alive: int, brake: bool) -> None:
    names = [f"n{i}" for i in range(dead + alive)]
    contacts = {name: DEAD if i < dead else ALIVE for i, name in enumerate(names)}
    texts, on = intents_for([node(name) for name in names], **contacts)
    assert on is brake
    assert any("pods" in text for text in texts) is not brake


def test_under_the_brake_nodes_are_marked_but_nobody_is_driven_away() -> None:
    texts, brake = intents_for([node("a"), node("b"), node("c")], a=DEAD, b=DEAD, c=ALIVE)
    assert brake
    assert texts == ["a dead", "b dead"]


def test_suspects_count_for_the_brake_before_they_are_dead() -> None:
    _, brake = intents_for([node("a"), node("b"), node("c")], a=DEAD, b=SUSPECTED, c=ALIVE)
    assert brake


def test_nodes_emptied_before_do_not_hold_the_brake_and_stay_empty() -> None:
    down = [node(n, ready="Unknown", suspect="True", taints=DOWN_TAINTS) for n in ("a", "b", "c")]
    nodes = [*down, node("d"), node("e")]
    texts, brake = intents_for(nodes, a=DEAD, b=DEAD, c=DEAD, d=DEAD, e=ALIVE)
    assert not brake
    assert texts == ["a pods", "b pods", "c pods", "d dead evict", "d pods"]


def test_drained_nodes_do_not_count_for_the_brake() -> None:
    drained = replace(DEAD, departed=True, drained=True)
    texts, brake = intents_for([node("a"), node("b"), node("c")], a=drained, b=drained, c=ALIVE)
    assert not brake
    assert "a pods" in texts


# -- marks ---------------------------------------------------------------------------------------------------------


def test_a_mark_keeps_what_others_wrote_and_stamps_only_changes() -> None:
    n = node("a", taints=(("mine", "NoSchedule"),))
    n.status.conditions.add(type="MemoryPressure", status="False")
    down = marked(n, Health.DEAD, reason="silent", evict=True, wall_ms=5_000)
    assert down is not None
    assert [(t.key, t.effect) for t in down.spec.taints] == [("mine", "NoSchedule"), UNREACHABLE_TAINT, SUSPECT_TAINT]
    conditions = {c.type: c for c in down.status.conditions}
    assert {t: c.status for t, c in conditions.items()} == {
        "Ready": "Unknown",
        "MemoryPressure": "False",
        "Suspect": "True",
    }
    assert conditions["Ready"].lastTransitionTime.seconds == 5
    assert marked(down, Health.DEAD, reason="for another reason", evict=True, wall_ms=9_000) is None
    up = marked(down, Health.ALIVE, reason="heard", evict=False, wall_ms=9_000)
    assert up is not None
    assert [t.key for t in up.spec.taints] == ["mine"]
    assert {c.type: c.status for c in up.status.conditions}["Suspect"] == "False"


# -- pods ----------------------------------------------------------------------------------------------------------


def pod(name: str, *, phase: str = "Running", **toleration: str | int) -> Pod:
    p = Pod()
    p.metadata.name = name
    p.status.phase = phase
    if toleration:
        t = p.spec.tolerations.add()
        for field, value in toleration.items():
            setattr(t, field, value)
    return p


@pytest.mark.parametrize(
    ("case", "goes"),
    [
        pytest.param(pod("p"), True, id="plain"),
        pytest.param(pod("p", phase="Succeeded"), False, id="finished"),
        pytest.param(pod("p", operator="Exists"), False, id="tolerates everything"),
        pytest.param(pod("p", key=UNREACHABLE_TAINT[0], operator="Exists"), False, id="tolerates it"),
        pytest.param(pod("p", key=UNREACHABLE_TAINT[0], operator="Equal", value=""), False, id="equal to no value"),
        pytest.param(pod("p", key=UNREACHABLE_TAINT[0], operator="Equal", value="x"), True, id="another value"),
        pytest.param(pod("p", key="other", operator="Exists"), True, id="tolerates another taint"),
        pytest.param(pod("p", operator="Exists", effect="NoSchedule"), True, id="another effect"),
        pytest.param(pod("p", operator="Exists", tolerationSeconds=11), False, id="tolerates it still"),
        pytest.param(pod("p", operator="Exists", tolerationSeconds=10), True, id="tolerated it long enough"),
    ],
)
def test_which_pods_of_a_node_dead_for_ten_seconds_go(case: Pod, goes: bool) -> None:
    assert pods_to_evict([case], 10.0) == ([case] if goes else [])
