"""``python -m node`` as an operator meets it: signals, kill -9 and adoption, errors, health."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from node.layout import read_json
from node.runtime import procs
from tests.unit.node.support import FakeReplica, eventually, make_pod


async def start(*argv: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "node",
        *argv,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "GRPC_VERBOSITY": "NONE"},
    )


@asynccontextmanager
async def an_agent(state_dir: Path, replica: FakeReplica, *more: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await start(
        "--name", "node-1", "--endpoints", replica.endpoint, "--state-dir", str(state_dir), "--no-proxy", *more
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


@pytest.fixture
async def replica() -> AsyncIterator[FakeReplica]:
    fake = FakeReplica()
    await fake.start()
    yield fake
    await fake.stop()


def container_pid(state_dir: Path, uid: str) -> int:
    (path,) = (state_dir / "pods" / uid / ".agent" / "containers").glob("[!.]*.json")
    record = read_json(path)
    assert record is not None
    return int(record["pid"])


def alive(pid: int) -> bool:
    return procs.identity_of(pid) is not None


@pytest.mark.slow
async def test_kill_9_of_the_agent_stops_no_pod_and_the_next_one_adopts_it(
    tmp_path: Path, replica: FakeReplica
) -> None:
    state_dir = tmp_path / "n"
    replica.assign(make_pod("a"))
    async with an_agent(state_dir, replica) as first:
        await eventually(lambda: replica.ready("uid-a"))
        pid = container_pid(state_dir, "uid-a")
        first.kill()
        await first.wait()
    assert alive(pid)
    replica.statuses.clear()
    async with an_agent(state_dir, replica) as second:
        await eventually(lambda: replica.ready("uid-a"))
        assert container_pid(state_dir, "uid-a") == pid
        assert list(replica.hellos[-1].running_pod_uids) == ["uid-a"]
        second.send_signal(signal.SIGTERM)
        assert await second.wait() == 0
    assert not alive(pid)
    assert replica.phase("uid-a") == "Failed"


@pytest.mark.slow
async def test_an_agent_whose_replicas_are_all_gone_keeps_its_pods_and_says_so(
    tmp_path: Path, replica: FakeReplica
) -> None:
    state_dir = tmp_path / "n"
    replica.assign(make_pod("a"))
    port = _free_port()
    async with an_agent(state_dir, replica, "--metrics-listen", f"127.0.0.1:{port}") as process:
        await eventually(lambda: replica.ready("uid-a"))
        pid = container_pid(state_dir, "uid-a")
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
            assert (await _get(http, "/readyz"))[0] == 200
            metrics = (await _get(http, "/metrics"))[1]
            assert 'kubelet_node_name{node="node-1"} 1.0' in metrics
            await replica.stop()
            for _ in range(100):
                if (await _get(http, "/readyz"))[0] != 200:
                    break
                await asyncio.sleep(0.05)
            assert "no session with any replica" in (await _get(http, "/readyz?verbose"))[1]
            assert (await _get(http, "/livez"))[0] == 200
        assert alive(pid)
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    assert not alive(pid)


async def _get(http: aiohttp.ClientSession, path: str) -> tuple[int, str]:
    async with http.get(path) as response:
        return response.status, await response.text()


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "code", "said"),
    [
        (("--listen", "REPLICA"), 1, "stop what uses the port"),
        (("--metrics-listen", "REPLICA"), 1, "cannot serve metrics on"),
        (("--state-dir", "/no/such/place"), 2, "/no/such/place"),
        (("--capacity", "cpu=lots"), 2, "--capacity 'cpu=lots'"),
    ],
)
async def test_what_cannot_be_is_said_in_one_line(
    tmp_path: Path, replica: FakeReplica, changed: tuple[str, str], code: int, said: str
) -> None:
    flag, value = changed
    arguments = {"--name": "node-1", "--endpoints": replica.endpoint, "--state-dir": str(tmp_path / "n")}
    arguments[flag] = value.replace("REPLICA", replica.endpoint)
    process = await start("--no-proxy", *(part for pair in arguments.items() for part in pair))
    _, stderr = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == code
    text = stderr.decode()
    assert text.startswith("Error: ")
    assert said in text
    assert "Traceback" not in text
