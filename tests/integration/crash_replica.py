"""One real replica as a process with nothing around it: consensus, log, snapshots and store, driven through its pipes.

Run by ``test_crash_points.py``. Reads one JSON request a line and answers each with one line, in any order.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from controlplane import quarantine
from controlplane.base import failpoints
from controlplane.base.log import setup_logging
from controlplane.base.rand import SystemRand
from controlplane.pb.etcd.rpc_pb2 import PutRequest, RangeRequest
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import Command, Reply
from controlplane.raft.config import RaftConfig, make_members
from controlplane.raft.driver import Replica
from controlplane.raft.types import Applied
from controlplane.store.store import Store

#: Small, so that every step of the log's and the snapshots' life comes within some hundred writes.
CONFIG = RaftConfig(
    heartbeat_ms=25,
    election_min_ms=250,
    election_max_ms=500,
    step_down_ms=200,
    hasten_max_ms=30,
    hastened_retry_min_ms=20,
    hastened_retry_max_ms=60,
    snapshot_entries=40,
    catch_up_entries=16,
    snapshot_chunk_bytes=4096,
    wal_segment_bytes=6_000,
    pace_ms=0,
)
_TIMEOUT_MS = 3_000


class Process:
    """The replica, and the answers to what is asked of it."""

    def __init__(self, name: str, data_dir: Path, cluster: str) -> None:
        cluster_id, members = make_members("crash", ((n, a, "", "") for n, a in json.loads(cluster)))
        self._rand = SystemRand()
        self._data_dir = data_dir
        self.store = Store(cluster_id=cluster_id)
        self.raft = Replica(
            config=CONFIG,
            cluster_id=cluster_id,
            members=members,
            name=name,
            data_dir=data_dir,
            state_machine=self.store,
            create_data_dir=True,
        )

    async def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        match request["op"]:
            case "put":
                put = PutRequest(key=request["key"].encode(), value=request["value"].encode())
                outcome = await self.raft.propose(
                    Command(put=put).SerializeToString(), request_id=self._rand.token(16), timeout_ms=_TIMEOUT_MS
                )
                if not isinstance(outcome, Applied):
                    return {"acknowledged": False}
                reply = Reply.FromString(outcome.reply)
                return {"acknowledged": reply.WhichOneof("result") == "put"}
            case "arm":
                failpoints.arm(request["spec"])
                return {}
            case "status":
                status = self.raft.status()
                return {
                    "leader": status.leader,
                    "ready": status.ready,
                    "applied": status.applied_index,
                    "revision": self.store.revision,
                    "hash": self.store.state_hash(),
                }
            case "condemn":  # as when its state was found to differ
                quarantine.impose(self._data_dir, "condemned by the test")
                return {}
            case "keys":
                found = self.store.range(RangeRequest(key=b"\0", range_end=b"\0"))
                return {"keys": {kv.key.decode(): kv.value.decode() for kv in found.kvs}}
            case other:
                raise ValueError(other)


async def main() -> None:
    setup_logging("info")
    failpoints.arm_from_environment()
    quarantine.check(Path(sys.argv[2]))
    process = Process(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
    await process.raft.start()
    loop = asyncio.get_running_loop()
    requests = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(requests), sys.stdin)
    tasks: set[asyncio.Task[None]] = set()

    async def serve(request: dict[str, Any]) -> None:
        answer = await process.answer(request)
        sys.stdout.write(json.dumps({"id": request["id"], **answer}) + "\n")
        sys.stdout.flush()

    def failed(error: asyncio.Future[BaseException]) -> None:
        raise SystemExit(f"replica failed: {error.result()!r}")

    process.raft.failed.add_done_callback(failed)
    while line := await requests.readline():
        task = asyncio.create_task(serve(json.loads(line)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await process.raft.stop()


if __name__ == "__main__":
    asyncio.run(main())
