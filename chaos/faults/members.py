"""Faults of membership: a member whose disk is lost and is replaced, one that leaves, one that joins for a while; every
replica restarted in turn; and the leader asked to hand over.

All use the cluster's own way in and out (learner first, promoted when it has caught up). Healing looks at what members
there are and goes on from there, so it may be repeated after any interruption.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from chaos.fault import JSON, DeviationError, Fault, FaultError, ImpossibleError, Strike, Undo
from chaos.faults.params import known
from chaos.faults.process import start
from chaos.ground import Ground, aside
from chaos.targets import quorum_lost
from controlplane.base.addresses import split_address
from controlplane.base.errors import Code, ConfigError, StatusError
from controlplane.base.rand import Rand
from controlplane.client.members_client import MembersClient
from controlplane.pb.etcd import rpc_pb2

__all__ = ["FAULTS"]

_SERVE_TIMEOUT_S: Final = 30.0
_CHANGE_TIMEOUT_S: Final = 60.0
_POLL_S: Final = 0.05


class MemberReplace(Fault):
    """A disk is lost for good."""

    name = "member-replace"
    doc = "kill -9 of a replica and its disk lost; healed by removing the member and adding it anew, learner first"
    target = "follower"
    params: Mapping[str, str] = {}

    def plan(self, ground: Ground, targets: Sequence[str], params: Mapping[str, JSON], rand: Rand) -> Strike:
        known(self.name, params, self.params)
        name = _one_replica(self.name, ground, targets)
        undo = (Undo(self.name, {"replace": name, "old_id": ground.seen.member_ids[name]}),)
        return Strike(
            self.name, (name,), {}, undo, quorum_lost=quorum_lost(ground.seen, [name]),
            says=f"kill -9 {name}, and its disk destroyed",
        )  # fmt: skip

    async def strike(self, ground: Ground, strike: Strike) -> Mapping[str, JSON]:
        def lose() -> None:
            ground.cluster.kill(strike.victims[0])
            ground.cluster.destroy_replica_data(strike.victims[0])

        await aside(lose)
        return {}

    async def heal(self, ground: Ground, undo: Undo) -> None:
        await _rejoin(ground, undo.args["replace"], int(undo.args["old_id"]))


class MemberRemove(Fault):
    """A member leaves the cluster, and comes back as a new one."""

    name = "member-remove"
    doc = "remove a member, whose replica stops with a message; added anew, learner first, when healed"
    target = "follower"
    params: Mapping[str, str] = {}

    def plan(self, ground: Ground, targets: Sequence[str], params: Mapping[str, JSON], rand: Rand) -> Strike:
        known(self.name, params, self.params)
        name = _one_replica(self.name, ground, targets)
        undo = (Undo(self.name, {"replace": name, "old_id": ground.seen.member_ids[name]}),)
        lost = quorum_lost(ground.seen, [name])
        return Strike(self.name, (name,), {}, undo, quorum_lost=lost, says=f"remove member {name}")

    async def strike(self, ground: Ground, strike: Strike) -> Mapping[str, JSON]:
        name = strike.victims[0]
        async with _members(ground) as client:
            member = await _find(ground, client, name)
            if member is None:
                raise FaultError(f"{name} is no member")
            await client.remove(member.ID)
        return {}

    async def heal(self, ground: Ground, undo: Undo) -> None:
        await _rejoin(ground, undo.args["replace"], int(undo.args["old_id"]))


class MemberAdd(Fault):
    """One more member for a while."""

    name = "member-add"
    doc = "one more replica: learner, caught up, promoted; removed again when healed"
    target = ""
    params: Mapping[str, str] = {}

    def plan(self, ground: Ground, targets: Sequence[str], params: Mapping[str, JSON], rand: Rand) -> Strike:
        known(self.name, params, self.params)
        if ground.cluster.spec.store:
            raise ConfigError(f"{self.name}: the state is not in the replicas here")
        _, replica = ground.cluster.spec.with_replica()
        undo = (Undo(self.name, {"remove": replica.name}),)
        return Strike(
            self.name, (replica.name,), {}, undo, quorum_lost=False, says=f"{replica.name} joins as a learner"
        )

    async def strike(self, ground: Ground, strike: Strike) -> Mapping[str, JSON]:
        began_s = ground.clock.monotonic()
        replica = await aside(ground.cluster.add_replica)
        name = replica.name
        async with _members(ground, without=name) as client:
            await _add(ground, client, name)
            await start(ground, name)
            ground.replicas.add(name, replica.client)
            await _promoted(ground, client, name)
        return {"member_promoted_s": round(ground.clock.monotonic() - began_s, 3)}

    async def heal(self, ground: Ground, undo: Undo) -> None:
        name = undo.args["remove"]
        replica = next((r for r in ground.cluster.spec.replicas if r.name == name), None)
        if replica is None:
            return
        async with _members(ground, without=name) as client:
            member = await _find(ground, client, name)
            if member is not None:
                await _change(ground, lambda: client.remove(member.ID))
        await ground.replicas.remove(name)
        await aside(ground.cluster.remove_replica, name)


class RollingRestart(Fault):
    """Everything of a kind is replaced in turn, as an upgrade does it."""

    name = "rolling-restart"
    doc = "replicas (SIGTERM, the leader last) or agents (kill -9, their pods run on) restarted one after the other"
    target = "all-replicas"
    params: Mapping[str, str] = {}

    def plan(self, ground: Ground, targets: Sequence[str], params: Mapping[str, JSON], rand: Rand) -> Strike:
        known(self.name, params, self.params)
        if ground.cluster.remote and (nodes := sorted(set(targets) - set(ground.seen.replicas))):
            raise ImpossibleError(
                f"{self.name} of {', '.join(nodes)}: whether a node's agent serves again is asked at a port that chaos "
                "agents do not tell; replicas can be"
            )
        order = sorted(targets, key=lambda name: (name == ground.seen.leader, name))
        undo = tuple(Undo(self.name, {"start": name}) for name in order)
        one = [name for name in order if name in ground.seen.replicas][:1]
        return Strike(
            self.name, tuple(order), {}, undo, quorum_lost=bool(one) and quorum_lost(ground.seen, one),
            says=f"restart in turn: {', '.join(order)}",
        )  # fmt: skip

    async def strike(self, ground: Ground, strike: Strike) -> Mapping[str, JSON]:
        for name in strike.victims:
            if not strike.quorum_lost:
                await _until_spared(ground, name)
            if name in ground.seen.nodes:
                await _until_pods_ready(ground, name)
            await restart(ground, name)
        return {"restarted": len(strike.victims)}

    async def heal(self, ground: Ground, undo: Undo) -> None:
        await start(ground, undo.args["start"])


class MoveLeader(Fault):
    """What an operator asks for with `qd leader move`."""

    name = "move-leader"
    doc = "the leader hands over to another replica, as `qd leader move` asks it to; nothing to heal"
    target = "leader"
    params: Mapping[str, str] = {"to": "the replica that shall lead; by default the leader picks"}

    def missing(self, ground: Ground) -> str | None:
        return "who leads is held by a lease in etcd here, and not moved" if ground.cluster.spec.store else None

    def plan(self, ground: Ground, targets: Sequence[str], params: Mapping[str, JSON], rand: Rand) -> Strike:
        known(self.name, params, self.params)
        name, to = _one_replica(self.name, ground, targets), str(params.get("to", ""))
        if name != ground.seen.leader:
            raise ConfigError(f"{self.name}: {name} does not lead; {ground.seen.leader or 'nobody'} does")
        if to and to not in ground.seen.member_ids:
            raise ConfigError(f"{self.name}: to: {to!r} is no replica; there are: {', '.join(ground.seen.replicas)}")
        if to == name:
            raise ConfigError(f"{self.name}: to: {to} leads already")
        says = f"{name}, the leader of term {ground.seen.term}, hands over{f' to {to}' if to else ''}"
        return Strike(self.name, (name,), {"to": to}, (), quorum_lost=False, says=says)

    async def strike(self, ground: Ground, strike: Strike) -> Mapping[str, JSON]:
        to = str(strike.args["to"])
        async with _members(ground) as client:
            try:
                await client.move_leader(ground.seen.member_ids[to] if to else 0)
            except StatusError as error:
                raise FaultError(f"{strike.victims[0]} does not hand over: {error.message}") from error
        return {}

    async def heal(self, ground: Ground, undo: Undo) -> None:
        """Whoever leads may lead."""


FAULTS: Final[tuple[Fault, ...]] = (MemberReplace(), MemberRemove(), MemberAdd(), RollingRestart(), MoveLeader())


async def restart(ground: Ground, name: str) -> None:
    """One process: stopped in good order (an agent: killed, so that its pods run on), started, waited for.

    Raises:
        FaultError: it does not serve in time.
    """
    replica = name in {r.name for r in ground.cluster.spec.replicas}
    await aside(ground.cluster.stop if replica else ground.cluster.kill, name)
    await start(ground, name)
    deadline_s = ground.clock.monotonic() + _SERVE_TIMEOUT_S
    while not await (_replica_serves if replica else _agent_serves)(ground, name):
        if ground.clock.monotonic() > deadline_s:
            raise DeviationError(f"{name} does not serve {_SERVE_TIMEOUT_S:g} s after its restart")
        await asyncio.sleep(_POLL_S)


async def _until_spared(ground: Ground, name: str) -> None:
    """Wait until the others are a majority without it: another fault may have struck one of them since this was
    planned. Raises FaultError: they are not, in time."""
    deadline_s = ground.clock.monotonic() + _SERVE_TIMEOUT_S
    while name in ground.seen.replicas and quorum_lost(await ground.look(), [name]):
        if ground.clock.monotonic() > deadline_s:
            raise FaultError(f"{name} is not restarted: for {_SERVE_TIMEOUT_S:g} s the others were no majority")
        await ground.clock.sleep(_POLL_S)


async def _until_pods_ready(ground: Ground, name: str) -> None:
    """Wait for every pod of the workload. A node gives its pods no new connections while its agent is away, and on a
    busy machine the agent before may have been away for so long that its pods were replaced: two such nodes may have
    had them all. Raises DeviationError: not in time."""
    wanted, pods = ground.seen.wanted, ground.pods
    if await pods.until(lambda: len(pods.ready()) >= wanted, _SERVE_TIMEOUT_S) is None:
        raise DeviationError(f"{name} is not restarted: for {_SERVE_TIMEOUT_S:g} s not {wanted} pods were Ready")


async def _replica_serves(ground: Ground, name: str) -> bool:
    answer = await ground.replicas.status(name)
    return answer is not None and answer.ready and bool(answer.leader)


async def _agent_serves(ground: Ground, name: str) -> bool:
    """By its own account: it has a session, and its proxy serves what it did before."""
    host, port = split_address(ground.cluster.node(name).metrics)
    try:
        async with asyncio.timeout(1.0):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(b"GET /readyz HTTP/1.0\r\n\r\n")
                return b" 200 " in await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False


def _one_replica(fault: str, ground: Ground, targets: Sequence[str]) -> str:
    if ground.cluster.spec.store:
        raise ConfigError(f"{fault}: the state is not in the replicas here")
    if len(targets) != 1 or targets[0] not in ground.seen.replicas:
        raise ConfigError(f"{fault}: {', '.join(targets)}: want one replica")
    return targets[0]


def _members(ground: Ground, *, without: str = "") -> MembersClient:
    """A client of the other replicas: who is to leave need not answer."""
    endpoints = [r.client for r in ground.cluster.spec.replicas if r.name != without]
    return MembersClient(endpoints, credentials=ground.cluster.credentials())


async def _find(ground: Ground, client: MembersClient, name: str) -> rpc_pb2.Member | None:
    """By its peer address: a member that has not started has no name."""
    end = f"//{ground.cluster.replica(name).peer}"
    members = await ground.patiently(client.members, timeout_s=_CHANGE_TIMEOUT_S)
    return next((m for m in members if any(url.endswith(end) for url in m.peerURLs)), None)


async def _rejoin(ground: Ground, name: str, old_id: int) -> None:
    """Out with the member that was, if it still is one, and in as a new one."""
    if name not in {r.name for r in ground.cluster.spec.replicas}:
        return
    async with _members(ground, without=name) as client:
        member = await _find(ground, client, name)
        if member is not None and old_id == member.ID:
            await _change(ground, lambda: client.remove(old_id))
            member = None
        if member is None:
            await aside(ground.cluster.prepare_rejoin, name)
            await _add(ground, client, name)
        await start(ground, name)
        await _promoted(ground, client, name)


async def _add(ground: Ground, client: MembersClient, name: str) -> None:
    peer = ground.cluster.replica(name).peer

    async def add() -> None:
        # Looked at each time: an add whose answer was lost has happened.
        if await _find(ground, client, name) is None:
            await client.add(peer, learner=True)

    await _change(ground, add)


async def _promoted(ground: Ground, client: MembersClient, name: str) -> None:
    """Wait until it has caught up and is a voter."""
    deadline_s = ground.clock.monotonic() + _CHANGE_TIMEOUT_S
    while True:
        ground.cluster.check_alive([name])
        member = await _find(ground, client, name)
        if member is None:
            raise FaultError(f"{name} is no member any more")
        if not member.isLearner:
            return
        try:
            await client.promote(member.ID)
        except StatusError as error:
            # Not in sync yet, or a voter was slow for a moment: asked again, as operators do.
            if ground.clock.monotonic() > deadline_s:
                raise DeviationError(
                    f"{name} was not promoted within {_CHANGE_TIMEOUT_S:g} s: {error.message}"
                ) from error
        await asyncio.sleep(_POLL_S)


async def _change(ground: Ground, call: Callable[[], Awaitable[object]]) -> None:
    """A change of members, asked for until it is taken: another may be in flight, or a voter slow for a moment."""
    deadline_s = ground.clock.monotonic() + _CHANGE_TIMEOUT_S
    while True:
        try:
            await call()
        except StatusError as error:
            if error.code == Code.NOT_FOUND:
                return  # it has happened: the answer to the first asking was lost
            if ground.clock.monotonic() > deadline_s:
                raise DeviationError(f"the members could not be changed: {error.message}") from error
            await asyncio.sleep(0.2)
        else:
            return
