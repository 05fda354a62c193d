"""The real etcdctl against ours: everything an operator types, and what it prints.

Where the real etcd is installed too, one long script of commands is run against both and must print the same.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from controlplane.store.store import Store
from tests.conftest import find_program
from tests.fakes.raft import FakeRaft
from tests.integration.etcd_rig import Ours, ours, real_etcd

pytestmark = [pytest.mark.needs("etcdctl", "etcd-client"), pytest.mark.slow]


@dataclass
class Answer:
    """What a command printed."""

    code: int
    out: str
    err: str


class Etcdctl:
    """etcdctl towards one endpoint."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD")}
        self._environment["ETCDCTL_API"] = "3"

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        """Start a command that runs until stopped."""
        program = find_program("etcdctl")
        assert program is not None
        return await asyncio.create_subprocess_exec(
            program,
            f"--endpoints={self.endpoint}",
            *arguments,
            env=self._environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def run(self, *arguments: str, stdin: str = "", timeout_s: float = 30) -> Answer:
        """Run a command to its end."""
        process = await self.start(*arguments)
        out, err = await asyncio.wait_for(process.communicate(stdin.encode()), timeout_s)
        assert process.returncode is not None
        return Answer(process.returncode, out.decode(), err.decode())

    async def ok(self, *arguments: str, stdin: str = "", timeout_s: float = 30) -> str:
        """Run a command that must succeed; what it printed."""
        answer = await self.run(*arguments, stdin=stdin, timeout_s=timeout_s)
        assert answer.code == 0, f"{arguments}: {answer}"
        return answer.out

    async def fails(self, *arguments: str) -> str:
        """Run a command that must fail; the last line of what it complained."""
        answer = await self.run(*arguments)
        assert answer.code != 0, f"{arguments}: {answer}"
        return answer.err.strip().splitlines()[-1]


async def lines(process: asyncio.subprocess.Process, count: int) -> list[str]:
    """The next lines a running command prints."""
    assert process.stdout is not None
    stdout = process.stdout
    return [(await asyncio.wait_for(stdout.readline(), 10)).decode().rstrip("\n") for _ in range(count)]


async def stopped(process: asyncio.subprocess.Process) -> None:
    """End a running command."""
    if process.returncode is None:
        process.terminate()
    await process.communicate()


@pytest.fixture
async def server() -> AsyncIterator[Ours]:
    async with ours() as server:
        yield server


@pytest.fixture
def ctl(server: Ours) -> Etcdctl:
    return Etcdctl(server.endpoint)


#: Commands whose whole output must be the real etcd's. A tuple is (arguments..., stdin after "<").
SCRIPT: list[tuple[str, ...]] = [
    ("put", "a", "1"),
    ("put", "a", "2", "--prev-kv"),
    ("put", "b", "3"),
    ("put", "ba", "4"),
    ("put", "c", "", "--ignore-value"),
    ("get", "a"),
    ("get", "nothing"),
    ("get", "a", "--rev=2"),
    ("get", "a", "--rev=99"),
    ("get", "b", "--prefix"),
    ("get", "", "--prefix", "--keys-only"),
    ("get", "", "--prefix", "--count-only", "--write-out=fields"),
    ("get", "", "--prefix", "--limit=2"),
    ("get", "", "--prefix", "--sort-by=modify", "--order=descend"),
    ("get", "", "--prefix", "--sort-by=value", "--order=ascend"),
    ("get", "b", "--from-key"),
    ("get", "a", "b"),
    ("get", "a", "--print-value-only"),
    ("get", "", "--prefix", "--write-out=json"),
    ("get", "", "--prefix", "--consistency=s"),
    ("del", "ba", "--prev-kv"),
    ("del", "nothing"),
    ("txn", "<", 'value("a") = "2"\n\nput a 5\nget a\n\nput x 1\n\n'),
    ("txn", "<", 'create("x") > "0"\nversion("a") = "3"\n\nput a 6\n\nget x\ndel b\n\n'),
    ("txn", "<", "\nput d 1\nput d 2\n\n\n"),
    ("lease", "grant", "1000", "--write-out=fields"),
    ("lease", "revoke", "1234"),
    ("lease", "timetolive", "1234"),
    ("lease", "keep-alive", "--once", "1234"),
    ("put", "l", "1", "--lease=1234"),
    ("compaction", "5"),
    ("compaction", "5"),
    ("compaction", "999"),
    ("get", "a", "--rev=3"),
    ("watch", "a", "--rev=2"),
    ("alarm", "list"),
    ("alarm", "disarm"),
    ("defrag",),
    ("put",),
    ("del", "", "--prefix"),
    ("get", "", "--prefix"),
]


def comparable(text: str, endpoint: str) -> str:
    """The text without what may differ between two clusters."""
    text = re.sub(r'"(cluster_id|member_id|raft_term)":\d+', r'"\1":0', text)
    text = re.sub(r'"(ClusterID|MemberID|RaftTerm|ID)" : \d+', r'"\1" : 0', text)
    text = re.sub(r'^\{"level":"warn".*\n?', "", text, flags=re.MULTILINE)  # its own retry log: times and targets
    return text.replace(endpoint, "ENDPOINT")


@pytest.mark.needs("etcd", "etcd-server")
async def test_a_long_script_prints_what_it_prints_with_the_real_etcd(ctl: Etcdctl, tmp_path: Path) -> None:
    async with real_etcd(tmp_path / "etcd") as endpoint:
        real = Etcdctl(endpoint)
        for command in SCRIPT:
            arguments, stdin = (command[: command.index("<")], command[-1]) if "<" in command else (command, "")
            theirs, mine = await asyncio.gather(real.run(*arguments, stdin=stdin), ctl.run(*arguments, stdin=stdin))
            shown = [
                (answer.code, comparable(answer.out, end), comparable(answer.err, end))
                for answer, end in ((theirs, real.endpoint), (mine, ctl.endpoint))
            ]
            assert shown[1] == shown[0], f"etcdctl {' '.join(arguments)}"


async def test_watch_follows_a_prefix_from_a_revision(ctl: Etcdctl) -> None:
    await ctl.ok("put", "w/a", "1")
    watching = await ctl.start("watch", "w/", "--prefix", "--rev=2")
    try:
        assert await lines(watching, 3) == ["PUT", "w/a", "1"]
        await ctl.ok("put", "w/b", "2")
        assert await lines(watching, 3) == ["PUT", "w/b", "2"]
        await ctl.ok("del", "w/a")
        assert await lines(watching, 3) == ["DELETE", "w/a", ""]
    finally:
        await stopped(watching)


async def test_interactive_watch_asks_for_progress(ctl: Etcdctl) -> None:
    await ctl.ok("put", "k", "v")
    watching = await ctl.start("watch", "-i")
    assert watching.stdin is not None
    try:
        watching.stdin.write(b"watch k --rev=2\n")
        # Progress needs a watch, and etcdctl says nothing when one is created: its first event does.
        assert await lines(watching, 3) == ["PUT", "k", "v"]
        watching.stdin.write(b"progress\n")
        assert await lines(watching, 1) == ["progress notify: 2"]
    finally:
        await stopped(watching)


async def test_a_lease_is_kept_alive_listed_and_revoked_with_its_keys(ctl: Etcdctl) -> None:
    lease = (await ctl.ok("lease", "grant", "60")).split()[1]
    await ctl.ok("put", "k", "v", f"--lease={lease}")
    assert lease in await ctl.ok("lease", "list")
    left = await ctl.ok("lease", "timetolive", lease, "--keys")
    assert "granted with TTL(60s)" in left
    assert "attached keys([k])" in left
    assert "keepalived with TTL(60)" in await ctl.ok("lease", "keep-alive", "--once", lease)
    await ctl.ok("lease", "revoke", lease)
    assert await ctl.ok("get", "k") == ""
    assert "already expired" in await ctl.ok("lease", "timetolive", lease)


async def test_an_unrenewed_lease_takes_its_key_away(ctl: Etcdctl) -> None:
    lease = (await ctl.ok("lease", "grant", "2")).split()[1]
    # From a revision on: however long etcdctl takes to begin, it misses nothing.
    watching = await ctl.start("watch", "k", "--rev=2")
    try:
        await ctl.ok("put", "k", "v", f"--lease={lease}")
        assert await lines(watching, 3) == ["PUT", "k", "v"]
        assert await lines(watching, 2) == ["DELETE", "k"]
    finally:
        await stopped(watching)


async def test_endpoint_status_health_and_hash(ctl: Etcdctl, server: Ours) -> None:
    await ctl.ok("put", "k", "v")
    (status,) = json.loads(await ctl.ok("endpoint", "status", "--write-out=json"))
    assert status["Status"]["leader"] == status["Status"]["header"]["member_id"] == 1
    assert status["Status"]["version"].startswith("3.5.")
    health = await ctl.run("endpoint", "health")
    assert "is healthy" in health.out + health.err
    (hashed,) = json.loads(await ctl.ok("endpoint", "hashkv", "--write-out=json"))
    assert hashed["HashKV"]["hash"] != 0
    server.raft.set_leader(None)
    (status,) = json.loads(await ctl.ok("endpoint", "status", "--write-out=json"))
    assert status["Status"]["errors"] == ["etcdserver: no leader"]


async def test_health_without_a_leader_is_unhealthy(ctl: Etcdctl, server: Ours) -> None:
    server.raft.set_leader(None)
    answer = await ctl.run("endpoint", "health", "--command-timeout=1s")
    assert answer.code != 0
    assert "is unhealthy" in answer.out + answer.err


async def test_member_list_is_a_table_of_started_members(ctl: Etcdctl) -> None:
    assert (await ctl.ok("member", "list")).startswith("1, started, r1, http://127.0.0.1:")


async def test_a_member_is_added_updated_promoted_and_removed(ctl: Etcdctl) -> None:
    added = await ctl.ok("member", "add", "r9", "--learner", "--peer-urls=http://127.0.0.1:9")
    member = re.search(r"Member +([0-9a-f]+) added", added)
    assert member is not None
    assert f"{member[1]}, unstarted, , http://127.0.0.1:9, , true" in await ctl.ok("member", "list")
    assert "updated" in await ctl.ok("member", "update", member[1], "--peer-urls=http://127.0.0.1:19")
    assert "promoted" in await ctl.ok("member", "promote", member[1])
    assert f"{member[1]}, unstarted, , http://127.0.0.1:19, , false" in await ctl.ok("member", "list")
    assert "can only promote a learner member" in await ctl.fails("member", "promote", member[1])
    assert "removed" in await ctl.ok("member", "remove", member[1])
    assert "member not found" in await ctl.fails("member", "remove", member[1])
    assert len((await ctl.ok("member", "list")).splitlines()) == 1


async def test_move_leader_is_for_the_leader_and_to_a_member(ctl: Etcdctl, server: Ours) -> None:
    assert "bad leader transferee" in await ctl.fails("move-leader", "99")
    FakeRaft(Store(cluster_id=FakeRaft.CLUSTER_ID), name="r2", join=server.raft)
    assert "Leadership transferred from 1 to 2" in await ctl.ok("move-leader", "2")
    assert server.raft.status().leader == "r2"


async def test_a_full_store_is_shown_and_disarmed(ctl: Etcdctl, server: Ours) -> None:
    server.kv.quota.limit_bytes = 1
    assert "mvcc: database space exceeded" in await ctl.fails("put", "k", "v")
    assert await ctl.ok("alarm", "list") == "memberID:1 alarm:NOSPACE \n"
    server.kv.quota.limit_bytes = 0
    assert "mvcc: database space exceeded" in await ctl.fails("put", "k", "v")
    assert await ctl.ok("alarm", "disarm") == "memberID:1 alarm:NOSPACE \n"
    await ctl.ok("put", "k", "v")


@pytest.mark.needs("etcd", "etcd-server")
async def test_a_mirror_in_a_real_etcd_follows_us(ctl: Etcdctl, tmp_path: Path) -> None:
    await ctl.ok("put", "m/before", "1")
    async with real_etcd(tmp_path / "etcd") as endpoint:
        real = Etcdctl(endpoint)
        watching = await real.start("watch", "m/", "--prefix", "--rev=1")
        mirroring = await ctl.start("make-mirror", endpoint, "--prefix=m/")
        try:
            assert await lines(watching, 3) == ["PUT", "m/before", "1"]
            await ctl.ok("put", "m/after", "2")
            assert await lines(watching, 3) == ["PUT", "m/after", "2"]
            await ctl.ok("del", "m/before")
            assert await lines(watching, 2) == ["DELETE", "m/before"]
        finally:
            await stopped(mirroring)
            await stopped(watching)


async def test_what_needs_no_server_or_an_etcds_own_says_so(ctl: Etcdctl, tmp_path: Path) -> None:
    assert "etcdctl version: 3." in await ctl.ok("version")
    assert "COMMANDS:" in await ctl.ok("help")
    for shell in ("bash", "fish", "powershell", "zsh"):
        assert "etcdctl" in await ctl.ok("completion", shell)
    # It reads the files of an etcd 2, of which we have none.
    assert "no such file or directory" in await ctl.fails("migrate", f"--data-dir={tmp_path}")


async def test_check_datascale_finds_the_servers_memory_on_its_client_port(ctl: Etcdctl) -> None:
    assert "Approximate system memory used" in (await ctl.run("check", "datascale", "--load=s", timeout_s=100)).out


#: Where each command is run: a test here, or in the file named.
COVERED = {
    "alarm disarm": "test_a_full_store_is_shown_and_disarmed",
    "alarm list": "test_a_full_store_is_shown_and_disarmed",
    "auth disable": "test_etcdctl_auth.py",
    "auth enable": "test_etcdctl_auth.py",
    "check datascale": "test_check_datascale_finds_the_servers_memory_on_its_client_port",
    "check perf": "test_check_perf_runs_to_its_verdict",
    "compaction": "SCRIPT",
    "completion bash": "test_what_needs_no_server_or_an_etcds_own_says_so",
    "completion fish": "test_what_needs_no_server_or_an_etcds_own_says_so",
    "completion powershell": "test_what_needs_no_server_or_an_etcds_own_says_so",
    "completion zsh": "test_what_needs_no_server_or_an_etcds_own_says_so",
    "defrag": "SCRIPT",
    "del": "SCRIPT",
    "elect": "test_elect_leads_and_is_observed",
    "endpoint hashkv": "test_endpoint_status_health_and_hash",
    "endpoint health": "test_endpoint_status_health_and_hash",
    "endpoint status": "test_endpoint_status_health_and_hash",
    "get": "SCRIPT",
    "help": "test_what_needs_no_server_or_an_etcds_own_says_so",
    "lease grant": "SCRIPT",
    "lease keep-alive": "SCRIPT",
    "lease list": "test_a_lease_is_kept_alive_listed_and_revoked_with_its_keys",
    "lease revoke": "SCRIPT",
    "lease timetolive": "SCRIPT",
    "lock": "test_lock_runs_a_command_alone",
    "make-mirror": "test_a_mirror_in_a_real_etcd_follows_us",
    "member add": "test_a_member_is_added_updated_promoted_and_removed",
    "member list": "test_member_list_is_a_table_of_started_members",
    "member promote": "test_a_member_is_added_updated_promoted_and_removed",
    "member remove": "test_a_member_is_added_updated_promoted_and_removed",
    "member update": "test_a_member_is_added_updated_promoted_and_removed",
    "migrate": "test_what_needs_no_server_or_an_etcds_own_says_so",
    "move-leader": "test_move_leader_is_for_the_leader_and_to_a_member",
    "put": "SCRIPT",
    "role add": "test_etcdctl_auth.py",
    "role delete": "test_etcdctl_auth.py",
    "role get": "test_etcdctl_auth.py",
    "role grant-permission": "test_etcdctl_auth.py",
    "role list": "test_etcdctl_auth.py",
    "role revoke-permission": "test_etcdctl_auth.py",
    "snapshot restore": "test_backup.py",
    "snapshot save": "test_backup.py",
    "snapshot status": "test_backup.py",
    "txn": "SCRIPT",
    "user add": "test_etcdctl_auth.py",
    "user delete": "test_etcdctl_auth.py",
    "user get": "test_etcdctl_auth.py",
    "user grant-role": "test_etcdctl_auth.py",
    "user list": "test_etcdctl_auth.py",
    "user passwd": "test_etcdctl_auth.py",
    "user revoke-role": "test_etcdctl_auth.py",
    "version": "test_what_needs_no_server_or_an_etcds_own_says_so",
    "watch": "test_watch_follows_a_prefix_from_a_revision",
}


async def test_every_command_that_etcdctl_has_is_run_somewhere(ctl: Etcdctl) -> None:
    listed = (await ctl.ok("help")).partition("COMMANDS:")[2].partition("OPTIONS:")[0]
    commands = {line.split("\t")[1].strip() for line in listed.splitlines() if line.startswith("\t")}
    assert commands == set(COVERED)
    for command, where in COVERED.items():
        words = command.split()
        if where == "SCRIPT":
            assert any(list(entry[: len(words)]) == words for entry in SCRIPT), command
        elif where.endswith(".py"):
            quoted = '"' + '", "'.join(words) + '"'
            assert quoted in (Path(__file__).parent / where).read_text(), command
        else:
            quoted = '"' + '", "'.join(words[:1]) + '"'
            assert quoted in inspect.getsource(globals()[where]), command


async def test_lock_runs_a_command_alone(ctl: Etcdctl) -> None:
    holding = await ctl.start("lock", "mutex")
    try:
        (key,) = await lines(holding, 1)
        assert key.startswith("mutex/")
        second = await ctl.start("lock", "mutex", "echo", "mine")
        assert second.stdout is not None
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(second.stdout.readline(), 0.3)
    finally:
        await stopped(holding)
    out, _ = await asyncio.wait_for(second.communicate(), 10)
    assert out.decode().strip() == "mine"


async def test_elect_leads_and_is_observed(ctl: Etcdctl) -> None:
    leading = await ctl.start("elect", "job", "candidate-1")
    try:
        key, value = await lines(leading, 2)
        assert (key[:4], value) == ("job/", "candidate-1")
        observing = await ctl.start("elect", "job", "--listen")
        try:
            assert await lines(observing, 2) == [key, "candidate-1"]
        finally:
            await stopped(observing)
    finally:
        await stopped(leading)


async def test_a_write_of_unknown_fate_is_a_timeout_to_etcdctl(ctl: Etcdctl, server: Ours) -> None:
    server.raft.lose_next(applied=False)
    assert "etcdserver: request timed out" in await ctl.fails("put", "k", "v")


async def test_check_perf_runs_to_its_verdict(ctl: Etcdctl) -> None:
    """It takes a minute whatever the load; here it is cut short once it reports progress without errors."""
    checking = await ctl.start("check", "perf", "--load=s")
    try:
        assert checking.stdout is not None
        seen = b""
        while b"2 / 60" not in seen:
            chunk: Any = await asyncio.wait_for(checking.stdout.read(4096), 20)
            assert chunk, "check perf ended early"
            seen += chunk
        assert b"FAIL" not in seen
    finally:
        await stopped(checking)
