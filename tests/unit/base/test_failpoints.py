"""Failpoints do nothing until armed, and then exactly what was said."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.base import failpoints
from controlplane.base.errors import ConfigError, StorageError


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    failpoints.disarm()


def test_unarmed_ones_do_nothing() -> None:
    for name in failpoints.FAILPOINTS:
        failpoints.hit(name)


def test_an_error_comes_at_every_hit_or_at_the_one_named() -> None:
    failpoints.arm("wal.sync.before=error:EIO, wal.sync.after=error:ENOSPC@2")
    for _ in range(2):
        with pytest.raises(StorageError, match=r"wal\.sync\.before: Input/output error") as caught:
            failpoints.hit("wal.sync.before")
        assert caught.value.errno == errno.EIO
    failpoints.hit("wal.sync.after")
    with pytest.raises(StorageError) as full:
        failpoints.hit("wal.sync.after")
    assert full.value.errno == errno.ENOSPC
    failpoints.hit("wal.sync.after")
    failpoints.hit("apply.before")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("wal.nowhere=kill", "no failpoint 'wal.nowhere'"),
        ("apply.after=explode", "'apply.after=explode': want NAME=kill"),
        ("apply.after=error:EWHAT", "want NAME=kill"),
        ("apply.after=kill@0", "want @N with N 1 or more"),
    ],
)
def test_a_wrong_specification_is_refused_with_what_is_allowed(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        failpoints.arm(spec)


def test_arming_is_loud(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.CRITICAL, logger="quarterdeck.failpoints"):
        failpoints.arm("apply.after=kill")
    assert "FAILPOINTS ARMED" in caplog.text


def test_a_place_in_the_code_that_nobody_listed_is_a_defect() -> None:
    failpoints.arm("apply.after=kill")
    with pytest.raises(ConfigError, match=r"'wal\.nowhere' is not in FAILPOINTS"):
        failpoints.hit("wal.nowhere")


def test_kill_kills_at_the_hit_named_and_leaves_no_time_to_clean_up() -> None:
    code = """
import atexit
from controlplane.base import failpoints
atexit.register(print, "cleaned up")
failpoints.arm_from_environment()
for n in range(5):
    print(n, flush=True)
    failpoints.hit("apply.after")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, failpoints.VARIABLE: "apply.after=kill@3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.split()) == (-signal.SIGKILL, ["0", "1", "2"])
    assert "failpoint kills this process name=apply.after" in done.stderr


def test_a_file_arms_disarms_and_when_it_is_nonsense_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "r1.failpoints"
    monkeypatch.setenv(failpoints.FILE_VARIABLE, str(file))
    failpoints.arm_from_file()  # there is none: nothing is armed
    failpoints.hit("wal.sync.before")
    file.write_text("wal.sync.before=error:EIO\n")
    failpoints.arm_from_file()
    with pytest.raises(StorageError):
        failpoints.hit("wal.sync.before")
    file.write_text("nonsense")
    failpoints.arm_from_file()
    assert "failpoints not armed" in caplog.text
    with pytest.raises(StorageError):
        failpoints.hit("wal.sync.before")
    file.write_text("")
    failpoints.arm_from_file()
    failpoints.hit("wal.sync.before")
