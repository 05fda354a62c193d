"""Objects are there wholly or not at all, in a directory and in a bucket; credentials are nowhere to be seen."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from controlplane.backup import checks
from controlplane.backup import objects as objects_module
from controlplane.backup.audit import audit
from controlplane.backup.materialize import materialize
from controlplane.backup.objects import OPTIONS_VARIABLE, ObjectStore, open_objects
from controlplane.backup.repository import Repository
from controlplane.backup.retention import Keep, prune
from controlplane.base.errors import ConfigError, StorageError
from tests.unit.backup.support import CLUSTER, Life


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """An S3 server on loopback with one bucket; its endpoint URL."""
    import boto3
    from moto.server import ThreadedMotoServer

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    endpoint = f"http://127.0.0.1:{port}"
    client = boto3.client(
        "s3", endpoint_url=endpoint, aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1"
    )
    client.create_bucket(Bucket="backups")
    client.close()
    yield endpoint
    server.stop()


@pytest.fixture(params=["directory", "memory", pytest.param("s3", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    if request.param == "directory":
        return open_objects(str(tmp_path / "place"))
    if request.param == "memory":
        return open_objects(f"memory://{tmp_path.name}/place", scratch=tmp_path)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    endpoint = request.getfixturevalue("s3")
    return open_objects(
        f"s3://backups/{tmp_path.name}?endpoint_url={endpoint}&region=us-east-1", scratch=tmp_path / "scratch"
    )


def put(store: ObjectStore, name: str, data: bytes) -> None:
    with store.writing(name) as file:
        file.write(data)


def test_what_is_written_is_listed_read_fetched_and_removed(store: ObjectStore, tmp_path: Path) -> None:
    assert (store.listing("c1/log"), store.folders()) == ([], [])
    put(store, "c1/log/b", b"second")
    put(store, "c1/log/a", b"first")
    put(store, "c2/log/z", b"")
    assert [(stored.name, stored.size) for stored in store.listing("c1/log")] == [("a", 5), ("b", 6)]
    assert store.folders() == ["c1", "c2"]
    assert store.read("c1/log/a") == b"first"
    store.fetch("c1/log/b", tmp_path / "fetched")
    assert (tmp_path / "fetched").read_bytes() == b"second"
    put(store, "c1/log/a", b"anew")
    assert store.read("c1/log/a") == b"anew"
    store.remove("c1/log/a")
    store.remove("c1/log/a")
    assert [stored.name for stored in store.listing("c1/log")] == ["b"]


def test_what_is_broken_off_never_was(store: ObjectStore) -> None:
    put(store, "c1/log/a", b"before")

    def die() -> None:
        with store.writing("c1/log/a") as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        die()
    assert store.read("c1/log/a") == b"before"
    assert [stored.name for stored in store.listing("c1/log")] == ["a"]


def test_what_is_not_there_is_said_with_its_place(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="c1/gone"):
        store.read("c1/gone")
    with pytest.raises(StorageError, match="c1/gone"):
        store.fetch("c1/gone", tmp_path / "x")


def test_backups_are_for_their_owner_alone(tmp_path: Path) -> None:
    put(open_objects(str(tmp_path / "place")), "c1/log/a", b"secret")
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "place").rglob("*")} == {0}


def test_a_writer_that_was_killed_leaves_nothing_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_objects(str(tmp_path))
    put(store, "log/a", b"")
    (tmp_path / "log" / ".tmp-dead").write_bytes(b"half")
    assert [stored.name for stored in store.listing("log")] == ["a"]
    put(store, "log/b", b"")
    assert (tmp_path / "log" / ".tmp-dead").exists()  # its writer may live
    monkeypatch.setattr(objects_module, "_TEMP_AGE_S", -1.0)
    put(store, "log/c", b"")
    assert not (tmp_path / "log" / ".tmp-dead").exists()


def test_what_is_read_whole_is_bounded(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, "c1/log/a", b"12345")
    monkeypatch.setattr(objects_module, "_READ_BYTES_MAX", 4)
    with pytest.raises(StorageError, match="bigger than anything"):
        store.read("c1/log/a")


def test_a_disk_that_is_nearly_full_is_left_to_the_replicas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_objects(str(tmp_path))
    monkeypatch.setattr(checks, "_free_bytes", lambda folder: 1_000_000)
    with pytest.raises(StorageError, match="1000000 bytes are free"):
        put(store, "log/a", b"x")
    assert store.listing("log") == []


@pytest.mark.parametrize("url", ["s3://KEY:hush@bucket/x", "s3://bucket/x?secret=hush", "sftp://me:hush@host/x"])
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError, match="environment") as caught:
        open_objects(url)
    assert "hush" not in str(caught.value)


def test_options_come_from_the_environment(tmp_path: Path) -> None:
    environment = {OPTIONS_VARIABLE: json.dumps({"auto_mkdir": True})}
    put(open_objects(f"local://{tmp_path}/place", environment=environment), "c1/a", b"x")
    assert (tmp_path / "place" / "c1" / "a").read_bytes() == b"x"
    with pytest.raises(ConfigError, match=f"{OPTIONS_VARIABLE} is not a JSON object"):
        open_objects("memory://x", environment={OPTIONS_VARIABLE: "[]"})


def test_an_unknown_scheme_is_named() -> None:
    with pytest.raises(ConfigError, match="floppy"):
        open_objects("floppy://a")


def test_a_store_that_is_away_is_an_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    with socket.socket() as bound:  # bound and not listening: connections are refused
        bound.bind(("127.0.0.1", 0))
        url = f"s3://backups/x?endpoint_url=http://127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(StorageError, match="cannot list") as caught:
            open_objects(url, scratch=tmp_path).listing("c1")
    assert "hush" not in str(caught.value)


@pytest.mark.slow
def test_a_state_comes_back_out_of_a_bucket(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    url = f"s3://backups/whole?endpoint_url={s3}&region=us-east-1"
    life = Life(tmp_path / "unused")
    life.repository = Repository(open_objects(url, scratch=tmp_path), CLUSTER)
    life.save()
    for key in (b"a", b"b", b"c"):
        life.put(key)
        life.archive(life.index, life.index)
    life.pack(2)
    life.save()
    assert audit(life.repository, tmp_path).problems == []
    for revision in (1, 3):
        assert materialize(url, to_revision=revision, scratch=tmp_path / "s").revision == revision
    file = f"s3://backups/whole/00000000000000c1/snapshots/{life.repository.snapshots()[0]}?endpoint_url={s3}"
    assert materialize(file, scratch=tmp_path / "s").state_hash == life.store.state_hash()
    assert len(prune(life.repository, Keep(last=1), life.now_ms).segments) == 2
    assert materialize(url, scratch=tmp_path / "s").revision == 4


def test_an_object_that_goes_while_it_is_listed_does_not_hide_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever puts segments together, or prunes, removes some while another replica, or a restore, looks."""
    store = open_objects(str(tmp_path / "place"))
    put(store, "log/a", b"1")
    put(store, "log/b", b"12")
    scandir = os.scandir

    @contextmanager
    def scanning(path: Path) -> Iterator[list[os.DirEntry[str]]]:
        with scandir(path) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        store.remove("log/a")
        yield found

    monkeypatch.setattr(os, "scandir", scanning)
    assert [(stored.name, stored.size) for stored in store.listing("log")] == [("b", 2)]


@pytest.mark.parametrize("scanned_first", ["loose", "nothing"])
def test_segments_that_are_put_together_while_they_are_listed_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scanned_first: str
) -> None:
    """A folder that changes while it is scanned may show neither what goes nor what comes."""
    life = Life(tmp_path / "archive")
    for key in (b"a", b"b"):
        life.put(key)
        life.archive(life.index, life.index)
    loose = life.repository._objects.listing(f"{CLUSTER:016x}/log")
    life.pack(2)
    packed = life.repository._objects.listing(f"{CLUSTER:016x}/log")
    scans = [*([loose] if scanned_first == "loose" else []), [], packed, packed]
    monkeypatch.setattr(life.repository._objects, "listing", lambda folder: scans.pop(0))
    assert [(name.first, name.last, name.packed) for name in life.repository.segments()] == [(2, 3, True)]
