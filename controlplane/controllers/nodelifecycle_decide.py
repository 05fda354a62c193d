"""Which nodes are alive, suspected or dead, and what follows. Pure: evidence in, intents out.

Owns the thresholds and the brake. Reads no clock, writes nothing; all times are seconds of the leader's own monotonic
clock.

A node is **Suspect** when its session broke and was not opened again anywhere for a moment, or when nobody heard from
it for longer than any healthy node is silent; its endpoints leave load balancing and nothing else happens. It is
**dead** when it stays so: its pods are deleted and run elsewhere. Two things are kept apart from a node's silence:

* the silence of the replica that holds its session: agents get time to move to another replica;
* the silence before this leader began to listen: verdicts need evidence of this leader's own, in both directions, so a
  new leader neither condemns nor pardons anybody at once.

The brake: when most nodes look dead at the same time it is more likely that we are cut off. Then nobody is evicted.
Nodes whose pods were replaced already count on neither side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from controlplane.api.session_table import Contact
from controlplane.client.objects import SUSPECT_CONDITION, pod_is_finished
from controlplane.pb.k8s.core_v1_pb2 import Node, NodeCondition, Pod, Taint

__all__ = [
    "SUSPECT_TAINT",
    "UNREACHABLE_TAINT",
    "Cause",
    "Decision",
    "EvictPods",
    "Health",
    "Intent",
    "LifecycleConfig",
    "MarkNode",
    "Verdict",
    "decide",
    "judge",
    "marked",
    "pods_to_evict",
]

SUSPECT_TAINT: Final = ("quarterdeck.dev/suspect", "NoSchedule")
UNREACHABLE_TAINT: Final = ("node.kubernetes.io/unreachable", "NoExecute")
_OURS: Final = {SUSPECT_TAINT, UNREACHABLE_TAINT}


@dataclass(frozen=True, slots=True)
class LifecycleConfig:
    """Thresholds, in seconds. A node's death costs ``reopen_grace_s`` (or ``missed_s``) + ``not_ready_after_s``
    before its pods are replaced; everything else protects live nodes.

    Attributes:
        reopen_grace_s: a broken session may be opened again, on any replica, for this long.
        missed_s: an open session may be silent for this long; several heartbeats and reports.
        replica_stale_s: a replica that reported nothing for this long is itself the suspect.
        replica_grace_s: time its agents get to move, since its last report. More than its own isolation limit
            (``SessionConfig.isolation_ms``) and the second an agent takes.
        leader_grace_s: time agents get to be heard of at all by a new leader.
        goodbye_grace_s: time an agent may take to restart.
        not_ready_after_s: from Suspect to dead.
        brake_fraction, brake_nodes_min: more than this part of at least so many nodes down at once: evict nobody.
        evictions_burst, evictions_per_s: nodes whose pods may be replaced at once, and per second after that.
    """

    reopen_grace_s: float = 0.5
    missed_s: float = 2.5
    replica_stale_s: float = 1.0
    replica_grace_s: float = 3.5
    leader_grace_s: float = 4.0
    goodbye_grace_s: float = 15.0
    not_ready_after_s: float = 1.5
    brake_fraction: float = 0.55
    brake_nodes_min: int = 3
    evictions_burst: int = 10
    evictions_per_s: float = 2.0


class Cause(Enum):
    """Why a node is given up: its value is for people, its name (in small letters) for metrics."""

    DRAINED = "its agent stopped and left nothing running"
    GOODBYE = "its agent said goodbye and did not return"
    SESSION_BROKE = "its session broke and was not opened again"
    NEVER_HEARD = "no replica has heard from its agent"
    NOT_RETURNED = "its replica started again and it has not returned"
    REPLICA_GONE = "its replica is gone and it reached no other"
    SILENT = "its agent is silent"


class Health(Enum):
    """What the evidence says of a node. UNSURE: not enough of it, leave everything as it is."""

    ALIVE = "alive"
    UNSURE = "unsure"
    SUSPECT = "suspect"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A node's health, why, and for how long it has been dead. ``cause``: of one that is not heard."""

    health: Health
    reason: str = ""
    dead_for_s: float = 0.0
    cause: Cause | None = None


@dataclass(frozen=True, slots=True)
class MarkNode:
    """Make the Node object say so. ``evict``: with the taint that drives pods away."""

    node: str
    health: Health
    reason: str
    evict: bool = False


@dataclass(frozen=True, slots=True)
class EvictPods:
    """Delete the node's pods, except those that tolerate it (still)."""

    node: str
    dead_for_s: float
    cause: Cause


Intent = MarkNode | EvictPods


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now, and what is so."""

    intents: list[Intent] = field(default_factory=list)
    down: int = 0
    considered: int = 0
    brake: bool = False


def judge(contact: Contact | None, now_s: float, config: LifecycleConfig) -> Verdict:
    """The verdict on one node."""
    if contact is None:
        return Verdict(Health.UNSURE)
    suspect_s, cause = _suspect_at(contact, now_s, config)
    dead_s = suspect_s if contact.drained else suspect_s + config.not_ready_after_s
    if now_s >= dead_s:
        return Verdict(Health.DEAD, cause.value, now_s - dead_s, cause)
    if now_s >= suspect_s:
        return Verdict(Health.SUSPECT, cause.value, cause=cause)
    if contact.open and contact.last_seen_s is not None and not _source_is_silent(contact, now_s, config):
        return Verdict(Health.ALIVE, "its agent is heard")
    return Verdict(Health.UNSURE)


def _source_is_silent(contact: Contact, now_s: float, config: LifecycleConfig) -> bool:
    return contact.source_heard_s is not None and now_s - contact.source_heard_s > config.replica_stale_s


def _suspect_at(contact: Contact, now_s: float, config: LifecycleConfig) -> tuple[float, Cause]:
    """When the node is, or will be, Suspect on the evidence so far."""
    if contact.drained and contact.broken_since_s is not None:
        return contact.broken_since_s, Cause.DRAINED
    if contact.departed and contact.broken_since_s is not None:
        return contact.broken_since_s + config.goodbye_grace_s, Cause.GOODBYE
    if contact.broken_since_s is not None:
        return contact.broken_since_s + config.reopen_grace_s, Cause.SESSION_BROKE
    if contact.last_seen_s is None:
        return contact.known_since_s + config.leader_grace_s, Cause.NEVER_HEARD
    if not contact.open:
        return contact.last_seen_s + config.replica_grace_s, Cause.NOT_RETURNED
    if contact.source_heard_s is not None and _source_is_silent(contact, now_s, config):
        return contact.source_heard_s + config.replica_grace_s, Cause.REPLICA_GONE
    return contact.last_seen_s + config.missed_s, Cause.SILENT


def decide(
    nodes: Sequence[Node], contact_of: Callable[[str], Contact | None], now_s: float, config: LifecycleConfig
) -> Decision:
    """What to do about all nodes, seen together."""
    verdicts = [(node, judge(contact_of(node.metadata.name), now_s, config)) for node in nodes]
    open_cases = [
        (node, verdict)
        for node, verdict in verdicts
        if not (verdict.health is Health.DEAD and _has_taint(node, UNREACHABLE_TAINT))
    ]
    # A drained node told us itself; its end is nobody's network.
    down = sum(
        1
        for node, verdict in open_cases
        if verdict.health in (Health.SUSPECT, Health.DEAD) and not _drained(contact_of(node.metadata.name))
    )
    brake = len(nodes) >= config.brake_nodes_min and down > config.brake_fraction * len(open_cases)
    intents: list[Intent] = []
    for node, verdict in verdicts:
        intents.extend(_intents(node, verdict, brake=brake))
    return Decision(intents, down=down, considered=len(open_cases), brake=brake)


def _drained(contact: Contact | None) -> bool:
    return contact is not None and contact.drained


def _intents(node: Node, verdict: Verdict, *, brake: bool) -> Iterable[Intent]:
    name = node.metadata.name
    if verdict.health is Health.UNSURE:
        return
    if verdict.health is Health.SUSPECT and _status_of(node, "Ready") == "Unknown":
        return  # it was found dead before, by this leader or another; being suspected again is no better
    condemned = _has_taint(node, UNREACHABLE_TAINT)
    evict = verdict.health is Health.DEAD and (condemned or not brake)
    if marked(node, verdict.health, reason=verdict.reason, evict=evict, wall_ms=0) is not None:
        yield MarkNode(name, verdict.health, verdict.reason, evict)
    if evict and verdict.cause is not None:  # who is dead has one
        yield EvictPods(name, verdict.dead_for_s, verdict.cause)


def pods_to_evict(pods: Iterable[Pod], dead_for_s: float) -> list[Pod]:
    """The pods of a dead node that must go: all but the finished, and those that tolerate it (for longer)."""
    return [pod for pod in pods if not pod_is_finished(pod) and not _tolerates(pod, dead_for_s)]


def _tolerates(pod: Pod, dead_for_s: float) -> bool:
    key, effect = UNREACHABLE_TAINT
    for toleration in pod.spec.tolerations:
        if toleration.effect not in ("", effect):
            continue
        any_key = toleration.operator == "Exists" and toleration.key in ("", key)
        this_key = toleration.operator in ("", "Equal") and toleration.key == key and toleration.value == ""
        if not any_key and not this_key:
            continue
        if not toleration.HasField("tolerationSeconds") or dead_for_s < toleration.tolerationSeconds:
            return True
    return False


# -- what a Node object says ---------------------------------------------------------------------------------------


def marked(node: Node, health: Health, *, reason: str, evict: bool, wall_ms: int) -> Node | None:
    """The node as it should be (conditions and taints), or None when it is so already."""
    statuses, taints = _wanted(node, health, evict=evict)
    if all(_status_of(node, name) == status for name, (status, _) in statuses.items()) and _our_taints(node) == taints:
        return None
    wanted = Node()
    wanted.CopyFrom(node)
    for name, (status, word) in statuses.items():
        _set_condition(wanted, name, status, word, reason, wall_ms)
    _set_taints(wanted, taints, wall_ms)
    return wanted


def _wanted(node: Node, health: Health, *, evict: bool) -> tuple[dict[str, tuple[str, str]], set[tuple[str, str]]]:
    """Condition type -> (status, reason), and which of our taints."""
    if health is Health.ALIVE:
        statuses = {"Ready": ("True", "SessionOpen")}
        if _status_of(node, SUSPECT_CONDITION):
            statuses[SUSPECT_CONDITION] = ("False", "SessionOpen")
        return statuses, set()
    suspected = {SUSPECT_CONDITION: ("True", "NoContact")}
    if health is Health.SUSPECT:
        return suspected, {SUSPECT_TAINT}
    taints = {SUSPECT_TAINT, UNREACHABLE_TAINT} if evict else {SUSPECT_TAINT}
    return suspected | {"Ready": ("Unknown", "NodeStatusUnknown")}, taints


def _status_of(node: Node, condition_type: str) -> str:
    return next((c.status for c in node.status.conditions if c.type == condition_type), "")


def _set_condition(node: Node, condition_type: str, status: str, reason: str, message: str, wall_ms: int) -> None:
    """Reasons and times change with the status only, so that saying the same again is no write."""
    condition: NodeCondition | None = next((c for c in node.status.conditions if c.type == condition_type), None)
    if condition is None:
        condition = node.status.conditions.add()
        condition.type = condition_type
    if condition.status == status:
        return
    condition.status = status
    condition.reason = reason
    condition.message = message
    condition.lastTransitionTime.seconds = wall_ms // 1000
    condition.lastHeartbeatTime.seconds = wall_ms // 1000


def _has_taint(node: Node, taint: tuple[str, str]) -> bool:
    return any((t.key, t.effect) == taint for t in node.spec.taints)


def _our_taints(node: Node) -> set[tuple[str, str]]:
    return {(t.key, t.effect) for t in node.spec.taints} & _OURS


def _set_taints(node: Node, wanted: set[tuple[str, str]], wall_ms: int) -> None:
    """Ours as wanted, all others as they are."""
    kept = [t for t in node.spec.taints if (t.key, t.effect) not in _OURS or (t.key, t.effect) in wanted]
    for key, effect in sorted(wanted - {(t.key, t.effect) for t in kept}):
        taint = Taint(key=key, effect=effect)
        taint.timeAdded.seconds = wall_ms // 1000
        kept.append(taint)
    del node.spec.taints[:]
    node.spec.taints.extend(kept)
