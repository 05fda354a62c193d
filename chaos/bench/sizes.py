"""Memory per key, restart of all members, and snapshot restore into a new cluster, by number of 1 KB keys."""

from __future__ import annotations

import signal
import time
from typing import Final

from chaos.bench import load
from chaos.bench.context import Context
from chaos.bench.peers import OURS, PEER, Peer, started

__all__ = ["sizes"]

_VALUE_BYTES: Final = 1_000


async def sizes(context: Context) -> None:
    """One size after another, each on fresh clusters of ours and of the peer in turn.

    Raises:
        RuntimeError: a restored cluster lacks keys; or the budget was used up before the last size.
    """
    for turn, keys in enumerate(context.settings.sizes):
        if not context.progress.fits(2):
            raise RuntimeError(f"no time was left for {keys:,} keys")
        for kind in (OURS, PEER) if turn % 2 == 0 else (PEER, OURS):
            context.step(f"{keys:,} keys: {kind}")
            async with started(kind, context.folder / f"keys-{keys}", context.port_base) as peer:
                await _size(context, peer, keys)


async def _size(context: Context, peer: Peer, keys: int) -> None:
    what = f"{keys:,} keys of 1 KB"
    empty = peer.memory_bytes()
    begin = time.perf_counter()
    await load.fill(peer.clients, keys, _VALUE_BYTES)
    rate = keys / (time.perf_counter() - begin)
    context.note(peer, f"{what}: written in transactions of 100", rate, "keys/s", more_is_better=True)
    per_key = (peer.memory_bytes() - empty) / len(peer.clients) / keys
    context.note(peer, f"{what}: memory per key and member", per_key, "bytes")
    context.note(peer, f"{what}: all killed, restarted, first write", await _restart(peer), "s")
    await peer.whole()
    context.note(peer, f"{what}: disks lost, restored, first write", await _restore(peer), "s")
    await peer.whole()
    found = await load.count(peer.clients[0], b"fill/")
    if found != keys:
        raise RuntimeError(f"{peer.kind} has {found:,} of {keys:,} keys after the restore")


async def _restart(peer: Peer) -> float:
    for name in peer.endpoints:
        peer.signal(name, signal.SIGKILL)
    for name in peer.endpoints:
        await peer.gone(name)
    return await peer.start()


async def _restore(peer: Peer) -> float:
    """Snapshot, kill all, lose every disk, restore; seconds from the loss to the first write."""
    file = peer.cluster.root / "bench.snapshot"
    await peer.save_snapshot(file)
    for name in peer.endpoints:
        peer.signal(name, signal.SIGKILL)
    for name in peer.endpoints:
        await peer.gone(name)
        peer.wipe(name)
    begin = time.perf_counter()
    await peer.restore_snapshot(file)
    await peer.start()
    taken = time.perf_counter() - begin
    file.unlink()
    return taken
