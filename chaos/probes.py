"""What experiments ask of a cluster: questions of the moment (steady state), and waits that measure.

A question returns a value, which the experiment compares with its tolerance. A wait returns True when what was waited
for has come, or raises DeviationError; what it measured goes into the trial's ``observed``. Changes nothing.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from chaos.claims import BINDS_IN_FLIGHT
from chaos.fault import JSON, DeviationError
from chaos.ground import NAMESPACE, WORKLOAD
from chaos.stage import Stage
from chaos.workload import fetch
from controlplane.base.errors import StatusError
from controlplane.client import ApiClient, EtcdClient
from controlplane.client.etcd_client import Acknowledged
from controlplane.client.fenced import LEADER_KEY
from controlplane.pb.etcd import kv_pb2, rpc_pb2
from controlplane.pb.k8s.core_v1_pb2 import Node, Pod, Service
from controlplane.pb.k8s.runtime_pb2 import Unknown

__all__ = ["PROBES", "Probe", "node_ready", "service_address", "states_of", "store_leader", "within"]

_WITHIN: Final = {"within_s": "seconds it may take"}
_KEY: Final = b"/chaos/probe"
_HASH_TRIES: Final = 300
_PATIENCE_S: Final = 5.0
_POLL_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Probe:
    """One probe. ``params``: argument -> a sentence. ``ask``: with a stage and these arguments."""

    doc: str
    ask: Callable[..., Awaitable[JSON]]
    params: Mapping[str, str]


async def node_ready(client: ApiClient, name: str) -> bool:
    """Whether the API says the node is Ready and not under suspicion."""
    try:
        node = await client.get(Node, name)
    except StatusError:
        return False  # not registered yet, or nobody to ask: asked again
    conditions = {condition.type: condition.status for condition in node.status.conditions}
    return conditions.get("Ready") == "True" and conditions.get("Suspect") != "True"


async def service_address(client: ApiClient) -> tuple[str, int]:
    """The workload's Service address. Raises ApiError."""
    service = await client.get(Service, WORKLOAD, namespace=NAMESPACE)
    return service.spec.clusterIP, service.spec.ports[0].port


# -- questions ---------------------------------------------------------------------------------------------------------


async def _leader_known(stage: Stage) -> bool:
    return (await stage.ground.replicas.leader())[0] is not None


async def _replicas_serving(stage: Stage) -> int:
    return sum(1 for answer in (await stage.ground.replicas.statuses()).values() if answer.ready)


async def _all_replicas_serve(stage: Stage) -> bool:
    """Asked for a few seconds: on a busy machine an answer may be late."""
    deadline_s = stage.now_s() + _PATIENCE_S
    while await _replicas_serving(stage) != len(stage.ground.replicas.names):
        if stage.at_once or stage.now_s() > deadline_s:
            return False
        await stage.ground.clock.sleep(_POLL_S)
    return True


async def _nodes_ready(stage: Stage) -> bool:
    names = [node.name for node in stage.ground.cluster.spec.nodes]
    return all(await asyncio.gather(*(node_ready(stage.ground.client, name) for name in names)))


async def _pods_ready_now(stage: Stage) -> int:
    return len(stage.ground.pods.ready())


async def _all_pods_ready(stage: Stage) -> bool:
    return len(stage.ground.pods.ready()) >= stage.wanted


async def _service_answers(stage: Stage) -> bool:
    address = await service_address(stage.ground.client)
    for _ in range(2):  # one retry, as clients of a service do
        if await fetch(*address, timeout_s=2.0) is None:
            return True
        await asyncio.sleep(0.05)
    return False


async def _write_acknowledged(stage: Stage) -> bool:
    value = stage.ground.rand.token(8).hex().encode()
    key = _KEY + b"-during" if stage.at_once else _KEY  # two that ask at a time do not read each other's
    if not isinstance(await stage.ground.kv.put(key, value), Acknowledged):
        return False
    found = await stage.ground.kv.get(key)
    return found is not None and found.value == value


async def states_of(stage: Stage) -> dict[str, JSON]:
    """Whether the replicas' states agree (``agree``: None if that is not known), of whom (``members``), and ``text``.

    Asked until each has been compared: writes go on, and replicas are asked one after the other, so that few are seen
    at one revision at once. A revision has one hash whenever it is asked for, so earlier answers count too."""
    hashes: dict[int, tuple[str, str]] = {}
    seen_at: dict[int, set[str]] = {}
    alike: set[str] = set()  # who is known to agree with the first
    names = stage.ground.replicas.names
    for _ in range(_HASH_TRIES):
        for name, answer in (await stage.ground.replicas.statuses()).items():
            other, known = hashes.setdefault(answer.revision, (name, answer.state_hash))
            if known != answer.state_hash:
                text = f"at revision {answer.revision} {other} has {known}, {name} has {answer.state_hash}"
                return {"agree": False, "members": names, "text": text}
            seen_at.setdefault(answer.revision, set()).add(name)
        alike = alike or set(names[:1])
        for group in seen_at.values():
            if group & alike:
                alike |= group
        if alike >= set(names):
            text = f"{', '.join(names)} at revision {max(seen_at)}"
            return {"agree": True, "members": names, "text": text}
        await stage.ground.clock.sleep(0.01)
    left = ", ".join(sorted(set(names) - alike))
    return {"agree": None, "members": names, "text": f"{left} silent, or never seen at a revision of another's"}


async def _states_agree(stage: Stage) -> bool:
    """Not known to agree is not agreed."""
    return (await states_of(stage))["agree"] is True


async def _bound_by_next_leader(stage: Stage) -> bool:
    """Whether pods that had no node when the next leader took office, which is the write of its fence, have one now:
    they were there when the last leader was killed, and it had not bound them. Proof of what the experiment claims."""
    took_office = await _next_office(stage.ground.kv, int(stage.observed.get("office_at_kill", 0)))
    unbound: set[str] = set()
    if took_office:
        then = await stage.ground.kv.get_prefix(f"/registry/pods/{NAMESPACE}/".encode(), revision=took_office)
        unbound = {pod.metadata.name for pod in map(_pod_of, then.kvs) if not pod.spec.nodeName}
    bound = [pod.name for pod in stage.ground.pods.views() if pod.name in unbound and pod.node]
    stage.observed["pods_bound_by_next_leader"] = len(bound)
    seen = f"{len(bound)} pods that had no node when the next leader took office were bound by it"
    stage.prove(BINDS_IN_FLIGHT, seen if bound else "")
    return bool(bound)


async def _next_office(kv: EtcdClient, last: int) -> int:
    """The revision at which the leader after that of revision ``last`` took office; 0: none has, or ``last`` is 0.
    Others may have followed since."""
    found = await kv.get(LEADER_KEY)
    at = found.mod_revision if found is not None and last else 0
    while at > last:
        request = rpc_pb2.RangeRequest(key=LEADER_KEY, revision=at - 1)
        earlier = max((each.mod_revision for each in (await kv.range(request)).kvs), default=0)
        if earlier <= last:
            return at
        at = earlier
    return 0


def _pod_of(kv: kv_pb2.KeyValue) -> Pod:
    """The pod in a value as Kubernetes keeps it in etcd."""
    return Pod.FromString(Unknown.FromString(kv.value.removeprefix(b"k8s\0")).raw)


async def _containers_started_again(stage: Stage, within_s: float = 30.0) -> bool:
    census = stage.census
    if census is None:
        raise DeviationError("no pods were counted before: there is nothing to compare with")
    took_s = await stage.until(census.started_again, within_s, "every killed container runs again")
    stage.observed["containers_again_s"] = round(took_s, 4)
    return True


# -- waits -------------------------------------------------------------------------------------------------------------


async def _new_leader(stage: Stage, within_s: float = 10.0) -> bool:
    before = stage.leader_before

    def found() -> bool:
        leader, term = stage.lookout.leader()
        return leader is not None and leader != before and term > stage.term_before

    await stage.until(found, within_s, f"another leader than {before}")
    leader, term = stage.lookout.leader()
    assert leader is not None  # as was found, and nothing has been waited for since
    # Seen when it came to lead, not when it was asked here: a replica that is stopped in good order hands over first,
    # and ends a while later.
    took_s = stage.lookout.leads_since_s(leader, term) - stage.leader_fault_s
    stage.ground.say(f"{leader} leads term {term} after {took_s:.2f} s")
    stage.observed |= {
        "leader_before": before, "leader_after": leader, "term_before": stage.term_before, "term_after": term,
        "leader_s": round(took_s, 4),
    }  # fmt: skip
    return True


async def _new_store_leader(stage: Stage, within_s: float = 10.0) -> bool:
    before, term_before = stage.observed["leader_before"], stage.observed["term_before"]
    found: tuple[str | None, int] = (None, 0)

    async def elected() -> bool:
        nonlocal found
        found = await store_leader(stage)
        # etcd's Status names a new leader before the term it leads: its term is that of the last entry applied.
        return found[0] not in {None, before} and found[1] > term_before

    await stage.until(elected, within_s, f"another leader of etcd than {before}")
    took_s = stage.since_fault_s()
    stage.ground.say(f"{found[0]} leads etcd's term {found[1]} after {took_s:.2f} s")
    stage.observed |= {"leader_after": found[0], "term_before": term_before, "term_after": found[1], "leader_s": took_s}
    return True


async def store_leader(stage: Stage) -> tuple[str | None, int]:
    """The etcd member that says it leads, in the newest term any says; and that term."""
    newest: tuple[str | None, int] = (None, 0)
    for member in stage.ground.cluster.spec.store:
        try:
            found = await stage.ground.kv.status(member.client)
        except StatusError:
            continue
        if found.leader == found.header.member_id and found.raftTerm > newest[1]:
            newest = member.name, found.raftTerm
    return newest


async def _pods_ready_elsewhere(stage: Stage, within_s: float = 30.0) -> bool:
    nodes = {name for name in stage.excused if name in stage.ground.seen.nodes}
    pods = stage.ground.pods
    what = f"{stage.wanted} pods Ready on other nodes than {', '.join(sorted(nodes))}"
    await stage.until(lambda: len(pods.ready(not_on=nodes)) >= stage.wanted, within_s, what)
    took_s = stage.since_fault_s()
    stage.ground.say(f"{stage.wanted} pods Ready elsewhere after {took_s:.2f} s")
    stage.observed |= {"node": ", ".join(sorted(nodes)), "replaced_s": round(took_s, 4)}
    if stage.census is not None:
        # A machine that is cut off has its pods still: nobody killed them.
        stage.observed.setdefault("pods_killed", stage.census.on(nodes))
    return True


async def _pods_ready(stage: Stage, count: int = 0, times: int = 1, within_s: float = 30.0) -> bool:
    wanted = count or stage.wanted * times
    pods = stage.ground.pods
    await stage.until(lambda: len(pods.ready()) >= wanted, within_s, f"{wanted} pods Ready")
    took_s = stage.since_fault_s()
    on_node = Counter(pod.node for pod in pods.ready())
    stage.ground.say(f"{wanted} pods Ready after {took_s:.2f} s")
    new = [v for struck in stage.struck if struck.entry.strike.fault == "node-add" for v in struck.entry.strike.victims]
    stage.observed |= {"pods_wanted": wanted, "pods_ready": len(pods.ready()), "scaled_s": round(took_s, 4)}
    if new:
        stage.observed["pods_on_new_nodes"] = {name: on_node[name] for name in new}
    return True


async def _new_nodes_ready(stage: Stage, within_s: float = 30.0) -> bool:
    new = [v for struck in stage.struck if struck.entry.strike.fault == "node-add" for v in struck.entry.strike.victims]
    for name in new:
        await stage.until(lambda name=name: node_ready(stage.ground.client, name), within_s, f"{name} Ready")  # type: ignore[misc]
    stage.observed["nodes_joined_s"] = round(stage.since_fault_s(), 4)
    return True


async def _replicas_whole(stage: Stage, within_s: float = 30.0) -> bool:
    cluster = stage.ground.cluster
    struck = {victim for each in stage.struck for victim in each.entry.strike.victims}
    alive = [name for name in cluster.names if name not in struck]
    if not await stage.ground.replicas.until_whole(within_s, lambda: cluster.check_alive(alive)):
        raise DeviationError(f"not all replicas serve and have caught up within {within_s:g} s")
    return True


async def _writes_go_on(stage: Stage, within_s: float = 10.0) -> bool:
    """Until a write that began after this question is acknowledged."""

    async def acknowledged() -> bool:
        return await _write_acknowledged(stage)

    await stage.until(acknowledged, within_s, "a write acknowledged")
    return True


async def _no_write_acknowledged(stage: Stage) -> bool:
    """Whether a write is refused or left in doubt within two seconds, as it must be without a quorum."""
    try:
        async with asyncio.timeout(2.0):
            return not isinstance(await stage.ground.kv.put(_KEY, b"no quorum"), Acknowledged)
    except TimeoutError:
        return True


PROBES: Final[Mapping[str, Probe]] = {
    "leader_known": Probe("whether a majority names a leader", _leader_known, {}),
    "replicas_serving": Probe("how many replicas serve", _replicas_serving, {}),
    "all_replicas_serve": Probe("whether every replica serves", _all_replicas_serve, {}),
    "nodes_ready": Probe("whether every node is Ready", _nodes_ready, {}),
    "pods_ready_now": Probe("how many pods of the workload are Ready", _pods_ready_now, {}),
    "all_pods_ready": Probe("whether as many pods are Ready as were wanted at the beginning", _all_pods_ready, {}),
    "service_answers": Probe("whether the workload's Service answers, with one retry", _service_answers, {}),
    "write_acknowledged": Probe("whether a write is acknowledged and read back", _write_acknowledged, {}),
    "no_write_acknowledged": Probe("whether no write is acknowledged within 2 s", _no_write_acknowledged, {}),
    "states_agree": Probe("whether all replicas have one state hash at one revision", _states_agree, {}),
    "new_leader": Probe("wait for another leader; measures leader_s", _new_leader, _WITHIN),
    "new_store_leader": Probe("wait for another leader of the etcd that is the store", _new_store_leader, _WITHIN),
    "pods_ready_elsewhere": Probe("wait for struck nodes' pods; measures replaced_s", _pods_ready_elsewhere, _WITHIN),
    "pods_ready": Probe(
        "wait for so many pods; measures scaled_s", _pods_ready,
        {"count": "how many", "times": "or how many times as many as at the beginning", **_WITHIN},
    ),
    "new_nodes_ready": Probe("wait for nodes that joined", _new_nodes_ready, _WITHIN),
    "bound_by_next_leader": Probe(
        "whether pods without a node at the kill were bound by the next leader; proves it", _bound_by_next_leader, {}
    ),
    "containers_started_again": Probe(
        "wait until killed containers run again, by their restart counts", _containers_started_again, _WITHIN
    ),
    "replicas_whole": Probe("wait until every replica serves and has caught up", _replicas_whole, _WITHIN),
    "writes_go_on": Probe("wait for an acknowledged write", _writes_go_on, _WITHIN),
}  # fmt: skip


def within(answer: Any, tolerance: JSON) -> bool:
    """Whether an answer is within a tolerance of Chaos Toolkit: a value, a list of them, a range, a pattern."""
    if isinstance(tolerance, dict):
        if tolerance.get("type") == "range":
            low, high = tolerance["range"]
            return isinstance(answer, int | float) and low <= answer <= high
        return re.search(str(tolerance["pattern"]), str(answer)) is not None
    if isinstance(tolerance, list) and not isinstance(answer, list):
        return answer in tolerance
    return bool(answer == tolerance)
