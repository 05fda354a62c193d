"""The real etcdctl managing users and acting as one of them: it prints what it prints with the real etcd."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.integration.etcd_rig import Ours, ours, real_etcd
from tests.integration.test_etcdctl import Etcdctl, comparable, lines, stopped

pytestmark = [pytest.mark.needs("etcdctl", "etcd-client"), pytest.mark.slow]

ROOT, ALICE = "--user=root:rootpw", "--user=alice:pw"

#: Commands in order; what comes after "<" is typed. Each must print, and end, as with the real etcd.
SCRIPT: list[tuple[str, ...]] = [
    ("role", "add", "app"),
    ("role", "add", "app"),
    ("role", "add", "other"),
    ("role", "grant-permission", "app", "readwrite", "foo"),
    ("role", "grant-permission", "app", "--prefix=true", "read", "bar/"),
    ("role", "grant-permission", "app", "write", "k1", "k5"),
    ("role", "grant-permission", "app", "--from-key=true", "read", "z"),
    ("role", "grant-permission", "nobody", "read", "foo"),
    ("role", "grant-permission", "app", "own", "foo"),
    ("role", "get", "app"),
    ("role", "get", "nobody"),
    ("role", "list"),
    ("user", "add", "alice:pw"),
    ("user", "add", "alice:pw"),
    ("user", "add", "bob", "--interactive=false", "<", "bobpw\n"),
    ("user", "add", "cert", "--no-password"),
    ("user", "add", "root:rootpw"),
    ("user", "grant-role", "alice", "app"),
    ("user", "grant-role", "alice", "nothing"),
    ("user", "grant-role", "nobody", "app"),
    ("user", "get", "alice"),
    ("user", "get", "alice", "--detail"),
    ("user", "get", "nobody"),
    ("user", "list"),
    ("put", "foo", "open to all"),
    ("put", "secret", "1"),
    ("put", "bar/x", "2"),
    ("put", "zz", "3"),
    ("auth", "enable"),
    ("role", "get", "root", ROOT),
    ("put", "foo", "2"),
    ("get", "foo"),
    ("put", "foo", "2", ALICE),
    ("get", "foo", ALICE),
    ("put", "foo", "3", "--prev-kv", ALICE),
    ("put", "k2", "3", ALICE),
    ("put", "k2", "3", "--prev-kv", ALICE),
    ("get", "k2", ALICE),
    ("put", "k5", "3", ALICE),
    ("put", "secret", "2", ALICE),
    ("get", "secret", ALICE),
    ("get", "bar/", "--prefix", ALICE),
    ("get", "bar", "--prefix", ALICE),
    ("get", "z", "--from-key", ALICE),
    ("get", "", "--prefix", ALICE),
    ("del", "k1", "k5", ALICE),
    ("del", "k1", "k6", ALICE),
    ("del", "foo", "--prev-kv", ALICE),
    ("txn", ALICE, "<", "\nput foo 1\nget bar/x\n\nput foo 2\n\n"),
    ("txn", ALICE, "<", "\nput foo 1\n\nput secret 2\n\n"),
    ("txn", ALICE, "<", 'value("secret") = "1"\n\nput foo 1\n\n\n'),
    ("watch", "secret", ALICE),
    ("watch", "secret"),
    ("get", "foo", "--user=alice:wrong"),
    ("get", "foo", "--user=nobody:pw"),
    ("user", "list", ALICE),
    ("user", "get", "alice", ALICE),
    ("user", "get", "bob", ALICE),
    ("role", "get", "app", ALICE),
    ("role", "get", "other", ALICE),
    ("role", "add", "mine", ALICE),
    ("user", "grant-role", "alice", "root", ALICE),
    ("member", "add", "x", "--peer-urls=http://127.0.0.1:1", ALICE),
    ("alarm", "list", ROOT),
    ("auth", "disable", ALICE),
    ("auth", "disable"),
    ("get", "", "--prefix", "--keys-only", ROOT),
    ("role", "revoke-permission", "app", "--prefix=true", "bar/", ROOT),
    ("role", "revoke-permission", "app", "--prefix=true", "bar/", ROOT),
    ("get", "bar/x", ALICE),
    ("role", "grant-permission", "app", "read", "secret", ROOT),
    ("get", "secret", ALICE),
    ("user", "passwd", "alice", "--interactive=false", ROOT, "<", "new\n"),
    ("get", "secret", ALICE),
    ("get", "secret", "--user=alice:new"),
    ("user", "revoke-role", "alice", "app", ROOT),
    ("user", "revoke-role", "alice", "app", ROOT),
    ("get", "secret", "--user=alice:new"),
    ("user", "delete", "alice", ROOT),
    ("user", "delete", "alice", ROOT),
    ("get", "secret", "--user=alice:new"),
    ("user", "delete", "root", ROOT),
    ("user", "revoke-role", "root", "root", ROOT),
    ("role", "delete", "root", ROOT),
    ("role", "delete", "app", ROOT),
    ("role", "list", ROOT),
    ("user", "get", "bob", "--user=bob:bobpw"),
    ("auth", "disable", ROOT),
    ("put", "secret", "open again"),
    ("get", "secret", ROOT),
]


@pytest.mark.needs("etcd", "etcd-server")
async def test_a_long_script_prints_what_it_prints_with_the_real_etcd(tmp_path: Path) -> None:
    async with real_etcd(tmp_path / "etcd") as endpoint, ours() as server:
        real, mine = Etcdctl(endpoint), Etcdctl(server.endpoint)
        for command in SCRIPT:
            arguments, stdin = (command[: command.index("<")], command[-1]) if "<" in command else (command, "")
            theirs, own = await asyncio.gather(real.run(*arguments, stdin=stdin), mine.run(*arguments, stdin=stdin))
            shown = [
                (answer.code, comparable(answer.out, end), comparable(answer.err, end))
                for answer, end in ((theirs, real.endpoint), (own, mine.endpoint))
            ]
            assert shown[1] == shown[0], f"etcdctl {' '.join(arguments)}"


def test_the_script_covers_every_command_about_users() -> None:
    said = {command[:2] for command in SCRIPT}
    roles = {"add", "delete", "get", "list", "grant-permission", "revoke-permission"}
    users = {"add", "delete", "get", "list", "grant-role", "revoke-role", "passwd"}
    assert said >= {("role", it) for it in roles} | {("user", it) for it in users}
    assert said >= {("auth", "enable"), ("auth", "disable")}


async def with_users(server: Ours) -> Etcdctl:
    """etcdctl towards a server with authentication enabled, root, and alice who may read a/."""
    ctl = Etcdctl(server.endpoint)
    for command in (
        ("role", "add", "app"),
        ("role", "grant-permission", "app", "--prefix=true", "readwrite", "a/"),
        ("user", "add", "alice:pw"),
        ("user", "add", "root:rootpw"),
        ("user", "grant-role", "alice", "app"),
        ("auth", "enable"),
    ):
        await ctl.ok(*command)
    return ctl


async def test_a_watch_ends_when_its_permission_does() -> None:
    """etcd's goes on. (etcdctl keeps the reason to itself when a watch ends that had begun.)"""
    async with ours() as server:
        ctl = await with_users(server)
        watching = await ctl.start("watch", "a/", "--prefix", "--rev=1", ALICE)
        try:
            await ctl.ok("put", "a/1", "seen", ALICE)
            assert await lines(watching, 3) == ["PUT", "a/1", "seen"]
            await ctl.ok("user", "revoke-role", "alice", "app", ROOT)
            out, err = await asyncio.wait_for(watching.communicate(), 10)
        finally:
            await stopped(watching)
    assert (out.decode(), err.decode()) == ("", "Error: watch is canceled by the server\n")


async def test_locks_and_elections_are_taken_as_the_user() -> None:
    async with ours() as server:
        ctl = await with_users(server)
        assert (await ctl.ok("lock", "a/mutex", "echo", "held", ALICE)).strip() == "held"
        assert "permission denied" in await ctl.fails("lock", "mutex", "echo", "held", ALICE)
        assert "user name is empty" in await ctl.fails("lock", "a/mutex", "echo", "held")


async def test_administration_is_for_root() -> None:
    async with ours() as server:
        ctl = await with_users(server)
        for command in (
            ("member", "add", "x", "--peer-urls=http://127.0.0.1:1"),
            ("member", "remove", "1"),
            ("defrag",),
            ("move-leader", "1"),
            ("snapshot", "save", "nowhere.db"),
        ):
            answer = await ctl.run(*command, ALICE)
            assert answer.code != 0, command
            assert "permission denied" in answer.out + answer.err, command
        await ctl.ok("endpoint", "status", ALICE)
        await ctl.ok("alarm", "list", ALICE)
        await ctl.ok("defrag", ROOT)
