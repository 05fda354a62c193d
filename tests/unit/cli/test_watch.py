"""``-w``: changes are printed as they happen, over replica failures and lost history."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from controlplane.base.errors import Code
from controlplane.cli import get as get_module
from controlplane.cli.common import Client
from controlplane.cli.get import follow
from controlplane.cli.show import Show
from controlplane.client.interface import ObjT, UnavailableError, WatchEvent
from controlplane.client.kinds import info_of
from controlplane.pb.k8s.core_v1_pb2 import ConfigMap
from tests.fakes.api import FakeApi


class FlakyApi(FakeApi):
    """Every watch fails this often before one stands."""

    failures = 0

    @asynccontextmanager
    async def watch(self, kind: type[ObjT], **chosen: Any) -> AsyncIterator[AsyncIterator[WatchEvent[ObjT]]]:
        if self.failures:
            self.failures -= 1
            raise UnavailableError(Code.UNAVAILABLE, "nobody there")
        async with super().watch(kind, **chosen) as events:
            yield events


class HurriedClock:
    """Sleeps are over at once."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(get_module, "SystemClock", HurriedClock)


def config(name: str, **data: str) -> ConfigMap:
    found = ConfigMap(data=data)
    found.metadata.name, found.metadata.namespace = name, "default"
    return found


class Watching:
    """``follow`` in the background, and what it has printed."""

    def __init__(self, api: FakeApi, capture: pytest.CaptureFixture[str], output: str | None = "name") -> None:
        self._capture = capture
        self.text = ""
        self.complaints = ""
        work = follow(cast(Client, api), Show(output), info_of(ConfigMap), "default", "", "", str(api.revision))
        self.task = asyncio.ensure_future(work)

    async def until(self, condition: Callable[[Watching], bool]) -> None:
        for _ in range(1000):
            out, err = self._capture.readouterr()
            self.text += out
            self.complaints += err
            if condition(self):
                return
            await asyncio.sleep(0)
        raise AssertionError(f"printed only {self.text!r} and {self.complaints!r}")


async def test_each_change_is_printed_and_none_twice(capsys: pytest.CaptureFixture[str]) -> None:
    api = FakeApi()
    api.put(config("before"))
    watching = Watching(api, capsys)
    await asyncio.sleep(0)
    api.put(config("a"))
    api.put(config("a", colour="red"))
    api.remove(ConfigMap, "a", "default")
    await watching.until(lambda w: w.text.count("\n") == 3)
    assert watching.text == "configmap/a\n" * 3
    watching.task.cancel()


async def test_rows_stay_aligned_and_headings_come_once(capsys: pytest.CaptureFixture[str]) -> None:
    api = FakeApi()
    watching = Watching(api, capsys, output=None)
    api.put(config("a-long-name"))
    await watching.until(lambda w: "a-long-name" in w.text)
    api.put(config("b", k="v"))
    await watching.until(lambda w: "\nb" in w.text)
    lines = watching.text.splitlines()
    assert lines[0].split() == ["NAME", "DATA", "AGE"]
    assert [line.index(cell) for line, cell in zip(lines, ("DATA", "0 ", "1 "), strict=True)] == [14, 14, 14]
    watching.task.cancel()


async def test_yaml_documents_are_kept_apart(capsys: pytest.CaptureFixture[str]) -> None:
    api = FakeApi()
    watching = Watching(api, capsys, output="yaml")
    api.put(config("a"))
    api.put(config("b"))
    await watching.until(lambda w: w.text.count("kind: ConfigMap") == 2)
    assert watching.text.count("\n---\n") == 1
    watching.task.cancel()


async def test_a_replica_that_goes_away_loses_and_repeats_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    api = FlakyApi()
    watching = Watching(api, capsys)
    api.put(config("a"))
    await watching.until(lambda w: "configmap/a" in w.text)
    api.failures = 2
    api.break_watches()
    api.put(config("b"))
    await watching.until(lambda w: "configmap/b" in w.text)
    assert watching.text == "configmap/a\nconfigmap/b\n"
    assert watching.complaints == ""
    watching.task.cancel()


async def test_a_long_outage_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    api = FlakyApi()
    api.failures = 12
    watching = Watching(api, capsys)
    api.put(config("a"))
    await watching.until(lambda w: "configmap/a" in w.text)
    assert watching.complaints == "still trying to watch configmaps: nobody there\n"
    watching.task.cancel()


async def test_lost_history_means_listing_again(capsys: pytest.CaptureFixture[str]) -> None:
    api = FakeApi()
    watching = Watching(api, capsys)
    api.put(config("a"))
    await watching.until(lambda w: "configmap/a" in w.text)
    api.put(config("b"))
    api.expire_watches()
    await watching.until(lambda w: "configmap/b" in w.text)
    assert "listing again" in watching.complaints
    api.put(config("c"))
    await watching.until(lambda w: "configmap/c" in w.text)
    watching.task.cancel()
