"""Password hashes: right for the right password, off the loop, bounded."""

from __future__ import annotations

import asyncio
import base64
from concurrent.futures import Executor, Future
from typing import Any

import pytest

from controlplane.base.errors import Code, StatusError
from controlplane.base.rand import SeededRand
from controlplane.etcd.passwords import LOG2_COST, Passwords
from tests.unit.etcd.fakes import InlineExecutor, settle


def cheap() -> Passwords:
    return Passwords(SeededRand(1), log2_cost=2, executor=InlineExecutor())


async def test_only_the_right_password_matches() -> None:
    passwords = cheap()
    hashed = await passwords.hash("geheim ✓")
    assert await passwords.matches("geheim ✓", hashed)
    for wrong in ("geheim", "", "geheim ✓ "):
        assert not await passwords.matches(wrong, hashed)


async def test_the_same_password_has_another_hash_each_time() -> None:
    passwords = cheap()
    assert await passwords.hash("x") != await passwords.hash("x")


async def test_an_empty_hash_matches_nothing() -> None:
    passwords = cheap()
    for password in ("", "x"):
        assert not await passwords.matches(password, "")


async def test_hashes_made_at_another_cost_still_match() -> None:
    hashed = await Passwords(SeededRand(2), log2_cost=5, executor=InlineExecutor()).hash("x")
    assert hashed.startswith("scrypt$5$8$1$")
    assert await cheap().matches("x", hashed)


async def test_it_is_scrypt_with_the_parameters_it_says() -> None:
    """RFC 7914, second test vector: the first 32 of its 64 bytes."""
    expected = bytes.fromhex("fdbabe1c9d3472007856e7190d01e9fe7c6ad7cbc8237830e77376634b373162")
    salt, hashed = base64.b64encode(b"NaCl").decode(), base64.b64encode(expected).decode()
    passwords = Passwords(SeededRand(1), executor=InlineExecutor())
    assert await passwords.matches("password", f"scrypt$10$8$16${salt}${hashed}")


async def test_by_default_a_thread_of_its_own_does_the_work_at_a_cost_that_hurts_who_guesses() -> None:
    passwords = Passwords(SeededRand(1))
    hashed = await passwords.hash("x")
    assert LOG2_COST >= 14
    assert hashed.startswith(f"scrypt${LOG2_COST}$8$1$")
    assert await passwords.matches("x", hashed)


class Stuck(Executor):
    """Never gets round to it."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        return Future()


async def test_a_flood_is_refused_and_cancelled_work_makes_room() -> None:
    passwords = Passwords(SeededRand(1), log2_cost=1, executor=Stuck())
    waiting = [asyncio.create_task(passwords.hash("x")) for _ in range(64)]
    await settle()
    with pytest.raises(StatusError) as refusal:
        await passwords.hash("x")
    assert (refusal.value.code, refusal.value.message) == (Code.RESOURCE_EXHAUSTED, "etcdserver: too many requests")
    waiting.pop().cancel()
    await settle()
    waiting.append(asyncio.create_task(passwords.hash("x")))
    await settle()
    assert not any(task.done() for task in waiting)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_password_too_long_is_refused_without_being_shown() -> None:
    with pytest.raises(StatusError) as refusal:
        await cheap().hash("secret" * 1_000)
    assert "secret" not in refusal.value.message
