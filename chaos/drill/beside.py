"""Ours beside etcd: the same data lost and restored on both, one after the other, on this machine.

Both are three members without TLS, with their defaults and fsync on. Ours is brought back by one ``qd snapshot
restore``; etcd by one ``etcdctl snapshot restore`` a member, run at once, and three starts, as its manual has it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from chaos.bench.load import count, fill
from chaos.bench.peers import OURS, PEER, Peer, started
from chaos.drill.drills import Row
from chaos.drill.fleet import DrillFailedError

__all__ = ["beside_etcd"]

_VALUE_BYTES = 1_000


async def beside_etcd(keys: int, port_base: int) -> list[Row]:
    """A row for each of the two."""
    rows = []
    for n, kind in enumerate((OURS, PEER)):
        with tempfile.TemporaryDirectory(prefix="qd-drill-") as folder:
            async with started(kind, Path(folder), port_base + 100 * n) as peer:
                rows.append(await _lose_and_restore(peer, keys, Path(folder)))
    return rows


async def _lose_and_restore(peer: Peer, keys: int, folder: Path) -> Row:
    await fill(peer.clients, keys, _VALUE_BYTES)
    file = folder / "backup"
    began_s = time.monotonic()
    await peer.save_snapshot(file)
    saved_s = time.monotonic() - began_s
    for name in peer.endpoints:
        peer.signal(name, signal.SIGKILL)
    for name in peer.endpoints:
        await peer.gone(name)
        peer.wipe(name)
    began_s = time.monotonic()
    if peer.kind == OURS:
        commands = asyncio.create_task(_qd_restore(peer, file))
    else:
        commands = asyncio.create_task(_etcd_restore(peer, file))
    serving = asyncio.create_task(_first_write(peer, commands))
    await asyncio.gather(commands, serving)
    done_s = time.monotonic() - began_s
    there = await count(peer.clients[0], b"fill/")
    if there != keys:
        raise DrillFailedError(f"{peer.kind} has {there} of {keys} keys after the restore")
    name = "quarterdeck" if peer.kind == OURS else peer.kind
    row = Row(f"all lost, {name}", keys, first_write_s=serving.result() - began_s, command_s=done_s)
    row.point, row.verdict = "the snapshot", "PASS"
    row.notes.append(f"snapshot saved in {saved_s:.2f} s")
    return row


async def _first_write(peer: Peer, commands: asyncio.Task[None]) -> float:
    """When a write was first acknowledged; not before the members are there to be asked."""
    while not all(peer.pid(name) for name in peer.endpoints):
        if commands.done():
            commands.result()
        await asyncio.sleep(0.005)
    await peer.serving()
    return time.monotonic()


async def _qd_restore(peer: Peer, file: Path) -> None:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "from controlplane.cli.main import main; main()",
        "snapshot", "restore", str(file), "--yes",
        env={**os.environ, "QD_FOLDER": str(peer.cluster.root), "QD_ENDPOINTS": ""},
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, said = await child.communicate()
    if child.returncode:
        raise DrillFailedError(f"qd snapshot restore ended with {child.returncode}: {said.decode().strip()}")


async def _etcd_restore(peer: Peer, file: Path) -> None:
    await peer.restore_snapshot(file)
    await peer.start()
