"""Ours beside etcd: the same data lost and restored on both, one after the other, on this machine.

Both are three members without TLS, with their defaults and fsync on. Ours is brought back by one ``qd snapshot
restore``; etcd by one ``etcdctl snapshot restore`` a member, run at once, and three starts, as its manual has it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from chaos.bench.load import connected, fill
from chaos.bench.peers import OURS, PEER, RANGE, Peer, started
from chaos.drill.fleet import DrillFailedError
from chaos.drill.row import Row
from controlplane.pb.etcd import rpc_pb2

__all__ = ["BOTH", "beside_etcd", "drill_of"]

BOTH: Final = (OURS, PEER)
_VALUE_BYTES = 1_000
_PREFIX, _PREFIX_END = b"fill/", b"fill0"
_PAGE = 1_000


def drill_of(kind: str) -> str:
    """What the drill with that system is called in the table."""
    return f"all lost, {kind}"


async def beside_etcd(rows: list[Row], kinds: Sequence[str], keys: int, port_base: int) -> None:
    """Drill each of these, and add its row.

    Raises:
        DrillFailedError: one has lost something; its row says so.
    """
    for n, kind in enumerate(kinds):
        row = Row(drill_of(kind), keys, point="the snapshot")
        rows.append(row)
        with tempfile.TemporaryDirectory(prefix="qd-drill-") as folder:
            async with started(kind, Path(folder), port_base + 100 * n) as peer:
                await _lose_and_restore(row, peer, Path(folder))


async def _lose_and_restore(row: Row, peer: Peer, folder: Path) -> None:
    await fill(peer.clients, row.keys, _VALUE_BYTES)
    before = await _content(peer)
    file = folder / "backup"
    save_s = time.monotonic()
    await peer.save_snapshot(file)
    row.notes.append(f"snapshot saved in {time.monotonic() - save_s:.2f} s")
    for name in peer.endpoints:
        peer.signal(name, signal.SIGKILL)
    for name in peer.endpoints:
        await peer.gone(name)
    dead_s = time.monotonic()
    for name in peer.endpoints:
        peer.wipe(name)
    if peer.kind == OURS:
        commands = asyncio.create_task(_qd_restore(peer, file))
    else:
        commands = asyncio.create_task(_etcd_restore(peer, file))
    serving = asyncio.create_task(_first_write(peer, commands))
    await asyncio.gather(commands, serving)
    row.point_s, row.recovery_s, row.command_s = dead_s - save_s, serving.result() - dead_s, time.monotonic() - dead_s
    after = await _content(peer)
    if after != before:
        raise DrillFailedError(
            f"{peer.kind} has {after[0]} of {before[0]} keys after the restore, or others than it had"
        )
    row.notes.append(f"{after[0]} keys equal")


async def _content(peer: Peer) -> tuple[int, str]:
    """How many keys of the load there are, and a digest of them: names, values and their own revisions."""
    digest, found, key, revision = hashlib.sha256(), 0, _PREFIX, 0
    async with connected(peer.clients, 1) as (client,):
        more = True
        while more:
            request = rpc_pb2.RangeRequest(key=key, range_end=_PREFIX_END, limit=_PAGE, revision=revision)
            page = rpc_pb2.RangeResponse.FromString(await client.unary(RANGE, request.SerializeToString()))
            for kv in page.kvs:
                digest.update(b"%d %b %d %d %d %d " % (len(kv.key), kv.key, kv.create_revision, kv.mod_revision,
                                                       kv.version, len(kv.value)))  # fmt: skip
                digest.update(kv.value)
            found += len(page.kvs)
            more, revision = page.more, revision or page.header.revision
            key = page.kvs[-1].key + b"\0" if page.kvs else key
    return found, digest.hexdigest()


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
