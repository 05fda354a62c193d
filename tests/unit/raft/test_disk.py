"""The real disk's refusals, and that both disks keep the same contract."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.base.errors import ConfigError, StorageError
from controlplane.raft.disk import Disk, RealDisk, read_all
from tests.sim.disk import PowerLoss, SimDisk


@pytest.fixture(params=["real", "sim"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    if request.param == "sim":
        yield SimDisk()
        return
    real = RealDisk(tmp_path)
    yield real
    real.close()


def test_what_is_appended_is_read_back_by_range(disk: Disk) -> None:
    disk.make_dir("d")
    file = disk.open_append("d/a")
    file.append(b"hello ")
    file.append(b"world")
    file.sync()
    assert (file.size, disk.size("d/a")) == (11, 11)
    assert disk.read("d/a") == b"hello world"
    assert disk.read("d/a", 6, 3) == b"wor"
    assert disk.read("d/a", 9, 100) == b"ld"
    assert read_all(disk, "d/a", step_bytes=4) == b"hello world"
    file.close()


def test_appending_goes_on_at_the_end_after_reopening_and_truncating(disk: Disk) -> None:
    disk.make_dir("d")
    file = disk.open_append("d/a")
    file.append(b"abcdef")
    file.close()
    file = disk.open_append("d/a")
    file.truncate(2)
    file.append(b"X")
    assert (file.size, disk.read("d/a")) == (3, b"abX")
    file.close()


def test_names_are_listed_sorted_renamed_and_removed(disk: Disk) -> None:
    disk.make_dir("d")
    for name in ("d/c", "d/a", "d/b"):
        disk.open_append(name).close()
    disk.rename("d/c", "d/a")
    disk.remove("d/b")
    disk.fsync_dir("d")
    assert disk.list("d") == ["a"]
    assert disk.list("missing") == []
    assert disk.exists("d/a")
    assert not disk.exists("d/b")


def test_a_missing_file_is_a_storage_error(disk: Disk) -> None:
    disk.make_dir("d")
    for use in (lambda: disk.read("d/x"), lambda: disk.size("d/x"), lambda: disk.remove("d/x")):
        with pytest.raises(StorageError, match="d/x"):
            use()


def test_making_a_directory_twice_keeps_its_files(disk: Disk) -> None:
    disk.make_dir("d")
    disk.open_append("d/a").close()
    disk.make_dir("d")
    assert disk.list("d") == ["a"]


def test_there_is_free_space(disk: Disk) -> None:
    assert disk.free_bytes() > 0


def test_a_missing_directory_is_a_config_error_unless_it_may_be_created(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    with pytest.raises(ConfigError, match=r"a/b does not exist.*replaced as a member"):
        RealDisk(path)
    RealDisk(path, create=True).close()
    RealDisk(path).close()


def test_a_file_in_the_directorys_place_is_a_config_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match="not a directory"):
        RealDisk(path)


def test_an_unwritable_directory_is_a_config_error(tmp_path: Path) -> None:
    # Root may write whatever the mode says, but nobody makes files in /sys/kernel.
    directory = Path("/sys/kernel") if os.geteuid() == 0 else tmp_path
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ConfigError, match="not writable"):
            RealDisk(directory)
    finally:
        tmp_path.chmod(0o700)


def test_a_directory_that_cannot_hold_the_lock_file_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "LOCK").mkdir()
    with pytest.raises(ConfigError, match="not writable"):
        RealDisk(tmp_path)


def test_two_holders_of_one_directory_are_refused_until_the_first_lets_go(tmp_path: Path) -> None:
    first = RealDisk(tmp_path)
    with pytest.raises(ConfigError, match=rf"in use by another process \(pid {os.getpid()}\)"):
        RealDisk(tmp_path)
    first.close()
    RealDisk(tmp_path).close()


@pytest.mark.slow
def test_another_process_is_refused_too(tmp_path: Path) -> None:
    holder = RealDisk(tmp_path)
    code = "import sys; from controlplane.raft.disk import RealDisk; RealDisk(sys.argv[1])"
    other = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    holder.close()
    assert other.returncode == 1
    assert "ConfigError" in other.stderr
    assert "in use by another process" in other.stderr


def test_a_full_device_is_a_storage_error_that_says_what_to_do() -> None:
    disk = RealDisk.__new__(RealDisk)
    disk._root = Path("/dev")
    file = disk.open_append("full")
    with pytest.raises(StorageError, match=r"cannot write /dev/full: No space left.*free some space"):
        file.append(b"x")
    file.close()


def test_sync_is_an_fdatasync_and_its_failure_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    disk = RealDisk(tmp_path)
    file = disk.open_append("a")
    monkeypatch.setattr(os, "fdatasync", failing)
    with pytest.raises(StorageError, match=r"cannot sync .*/a: Input/output error; check the device"):
        file.sync()
    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(StorageError, match="cannot sync"):
        disk.fsync_dir("")
    file.close()
    disk.close()


# -- the simulated disk forgets what it should ---------------------------------------------------------------------


def test_power_loss_keeps_synced_bytes_and_only_a_damaged_share_of_the_rest() -> None:
    seen = set()
    for seed in range(200):
        disk = SimDisk(seed)
        file = disk.open_append("a")
        file.append(b"x" * 700)
        file.sync()
        disk.fsync_dir("")
        file.append(b"y" * 2000)
        disk.power_loss()
        data = disk.read("a")
        assert data.startswith(b"x" * 700)
        assert not set(data[700:]) - set(b"y\0")
        seen.add("none" if len(data) == 700 else "zeros" if 0 in data else "all" if len(data) == 2700 else "torn")
    assert seen == {"none", "zeros", "all", "torn"}


def test_power_loss_may_drop_names_that_were_not_synced() -> None:
    outcomes = set()
    for seed in range(50):
        disk = SimDisk(seed)
        disk.open_append("old")
        disk.fsync_dir("")
        disk.rename("old", "new")
        disk.power_loss()
        outcomes.add(tuple(disk.list("")))
    assert outcomes == {("old",), ("new",)}


def test_a_killed_process_loses_nothing_but_its_handles() -> None:
    disk = SimDisk()
    file = disk.open_append("a")
    file.append(b"x")
    disk.process_died()
    assert disk.read("a") == b"x"
    with pytest.raises(AssertionError, match="dead"):
        file.append(b"y")


def test_after_a_failed_sync_a_successful_one_proves_nothing() -> None:
    disk = SimDisk(1)
    file = disk.open_append("a")
    disk.fsync_dir("")
    file.append(b"x")
    disk.sync_failures = 1
    with pytest.raises(StorageError, match="Input/output"):
        file.sync()
    file.sync()
    assert disk.read("a") == b"x"
    disk.power_loss()
    assert disk.read("a") == b"\0"


def test_the_machine_stops_at_the_given_operation() -> None:
    disk = SimDisk()
    file = disk.open_append("a")
    disk.stop_at = len(disk.operations)
    with pytest.raises(PowerLoss):
        file.append(b"1234")
    assert disk.read("a") == b"12"
