"""The write gap around faults of the leader, on ours and on the peer, trial by trial."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from functools import partial
from typing import Final

from chaos.bench.budget import FAULTS
from chaos.bench.context import Context
from chaos.bench.gap import longest_gap
from chaos.bench.peers import OURS, PEER, Peer, started
from controlplane.local.hosts import Hosts, missing

__all__ = ["cut_links", "gaps"]

_SIGNALS: Final[Mapping[str, signal.Signals]] = {
    "kill -9": signal.SIGKILL,
    "SIGSTOP": signal.SIGSTOP,
    "SIGTERM": signal.SIGTERM,
}
#: Between two trials on one cluster.
_REST_S: Final = 0.5
_NETWORKS: Final = (30, 31)


async def gaps(context: Context) -> None:
    """The longest time without an acknowledged write around a fault of the leader; three writers, one a member.

    The two clusters take turns trial by trial, and so do the faults, so that a run that is cut short has as many of
    each.
    """
    trials = context.settings.trials
    for trial in range(trials):
        if context.progress.time_is_up():
            context.say(f"the budget is used up after {trial} trials of each fault")
            return
        for fault in FAULTS:
            for peer in context.pair if trial % 2 == 0 else reversed(context.pair):
                context.step(f"write gap, {fault} of the leader, trial {trial + 1}/{trials}: {peer.kind}")
                _note(context, peer, fault, await _gap(peer, fault))


async def _gap(peer: Peer, fault: str) -> float:
    """One fault on the leader, its repair, and the gap it made."""
    leader = await peer.leader()
    gap = await longest_gap(peer.clients, lambda: peer.signal(leader, _SIGNALS[fault]))
    if fault == "SIGSTOP":
        peer.signal(leader, signal.SIGCONT)
        await peer.serving(via=leader)
    else:
        await peer.gone(leader)
        await peer.restart(leader)
    await asyncio.sleep(_REST_S)
    return gap


async def cut_links(context: Context) -> None:
    """The same when the leader's links to the other members are dead: packets get lost, nobody is told. Needs root,
    since each member lives in a network namespace of its own."""
    if (why := missing()) is not None:
        raise RuntimeError(f"links cannot be cut here: {why}; leave this case out with --without cut-links")
    folder, trials = context.folder / "cut", context.settings.trials
    with (
        Hosts(["r1", "r2", "r3"], network=_NETWORKS[0]) as our_hosts,
        Hosts(["etcd-1", "etcd-2", "etcd-3"], network=_NETWORKS[1]) as theirs,
    ):
        async with (
            started(OURS, folder, context.port_base, our_hosts) as ours,
            started(PEER, folder, context.port_base, theirs) as peer,
        ):
            pairs = ((ours, our_hosts), (peer, theirs))
            for trial in range(trials):
                if context.progress.time_is_up():
                    context.say(f"the budget is used up after {trial} trials")
                    return
                for cluster, hosts in pairs if trial % 2 == 0 else reversed(pairs):
                    context.step(f"write gap, leader's links cut, trial {trial + 1}/{trials}: {cluster.kind}")
                    leader = await cluster.leader()
                    gap = await longest_gap(cluster.clients, partial(hosts.isolate, leader))
                    hosts.heal()
                    await cluster.serving(via=leader)
                    await asyncio.sleep(_REST_S)
                    _note(context, cluster, "cut links", gap)


def _note(context: Context, peer: Peer, fault: str, gap_s: float) -> None:
    context.note(peer, f"longest write gap, {fault} of the leader", gap_s, "s")
