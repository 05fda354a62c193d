"""Backups are refused with a reason: another cluster's, another format's, locked ones, damaged ones, without room."""

from __future__ import annotations

import shutil
import struct
from hashlib import sha256
from pathlib import Path

import pytest

from controlplane.backup import checks
from controlplane.backup.audit import audit
from controlplane.backup.checks import check_cluster, check_room
from controlplane.backup.contents import contents_of, group_of
from controlplane.backup.keys import generate_key_file, read_identities, read_recipients
from controlplane.backup.manifest import Manifest
from controlplane.backup.materialize import materialize
from controlplane.backup.names import SegmentName, SnapshotName
from controlplane.backup.objects import open_objects
from controlplane.backup.repository import Keys, Repository
from controlplane.backup.segment import decode_segment, encode_pack, find_part
from controlplane.base.errors import ConfigError, CorruptStateError, NotCoveredError, StorageError
from tests.unit.backup.support import CLUSTER, Life, damage


@pytest.fixture
def life(tmp_path: Path) -> Life:
    life = Life(tmp_path / "archive")
    life.put(b"a")
    return life


def sealed_life(tmp_path: Path) -> Life:
    generate_key_file(tmp_path / "key")
    keys = Keys(read_recipients(tmp_path / "key"), read_identities(tmp_path / "key"))
    life = Life(tmp_path / "archive", keys)
    life.save()
    life.put(b"canary")
    life.archive(2, 2)
    life.put(b"second canary")
    life.archive(3, 3)
    return life


def test_another_clusters_state_needs_force() -> None:
    check_cluster(0xA, 0xA, force=False)
    check_cluster(0xA, 0xB, force=True)
    with pytest.raises(ConfigError, match=r"the snapshot is of cluster a, this is cluster b.*--force"):
        check_cluster(0xA, 0xB, force=False)


def test_too_little_disk_is_said_with_numbers(tmp_path: Path) -> None:
    check_room(tmp_path / "not" / "there", 1, what="it")
    with pytest.raises(StorageError, match=r"it takes 1\d{17} bytes on the disk of .* free"):
        check_room(tmp_path, 10**17, what="it")


def test_a_state_is_not_taken_out_where_there_is_no_room(
    life: Life, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    life.save()
    monkeypatch.setattr(checks, "_SPARE_BYTES", 10**17)
    with pytest.raises(StorageError, match=r"a copy of .*qdsnap takes"):
        materialize(str(life.root), scratch=tmp_path / "s")


def test_encrypted_backups_open_with_their_key_only(tmp_path: Path) -> None:
    life = sealed_life(tmp_path)
    generate_key_file(tmp_path / "other")
    with pytest.raises(ConfigError, match="is encrypted: name the key file"):
        materialize(str(life.root), scratch=tmp_path / "s")
    with pytest.raises(ConfigError, match="wrong key"):
        materialize(str(life.root), key_file=tmp_path / "other", scratch=tmp_path / "s")
    found = materialize(str(life.root), key_file=tmp_path / "key", scratch=tmp_path / "s")
    assert found.state_hash == life.store.state_hash()
    life.pack(2)
    assert materialize(str(life.root), key_file=tmp_path / "key", scratch=tmp_path / "s").revision == 3


def test_nothing_of_an_encrypted_state_lies_there_in_the_open(tmp_path: Path) -> None:
    life = sealed_life(tmp_path)
    files = [path for path in life.root.rglob("*") if path.is_file()]
    assert len(files) == 4
    assert not any(b"canary" in path.read_bytes() for path in files)


def test_the_manifest_of_an_encrypted_snapshot_is_read_without_the_key(tmp_path: Path) -> None:
    life = sealed_life(tmp_path)
    repository = Repository(open_objects(str(life.root)), CLUSTER)
    (name,) = repository.snapshots()
    manifest = repository.manifest(name)
    assert (manifest.encrypted, manifest.revision, manifest.members) == (True, 1, ("r1",))


def test_one_encrypted_file_opens_too(tmp_path: Path) -> None:
    life = sealed_life(tmp_path)
    file = life.repository.locate(life.repository.snapshots()[0])
    with pytest.raises(ConfigError, match="is encrypted"):
        materialize(file, scratch=tmp_path / "s")
    assert materialize(file, key_file=tmp_path / "key", scratch=tmp_path / "s").revision == 1


def test_a_newer_format_is_refused_by_its_number(life: Life, tmp_path: Path) -> None:
    path = life.save()
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, 8, 9)
    data[-32:] = sha256(data[:-32]).digest()
    path.write_bytes(data)
    with pytest.raises(ConfigError, match="has format 9, this version reads up to 1"):
        materialize(str(life.root), scratch=tmp_path / "s")
    segment = life.archive(2, 2)
    data = bytearray(segment.read_bytes())
    struct.pack_into("<I", data, 8, 9)
    data[-32:] = sha256(data[:-32]).digest()
    with pytest.raises(ConfigError, match="segment x has format 9"):
        decode_segment(bytes(data), "x")
    with pytest.raises(ConfigError, match="pack x has format 9"):
        find_part(b"QDLOGPK\n" + struct.pack("<II", 9, 0), 1, "x")


def test_a_newer_manifest_is_refused_and_a_damaged_one_named(life: Life) -> None:
    life.save()
    manifest = life.repository.manifest(life.repository.snapshots()[0])
    newer = manifest.encode().replace(b'"format_version": 1', b'"format_version": 2')
    with pytest.raises(ConfigError, match="manifest x has format 2"):
        Manifest.decode(newer, "x")
    for text in (b"", b"{}", b"[1]", b'{"kind": "else"}', newer.replace(b"revision", b"revolution")):
        with pytest.raises((CorruptStateError, ConfigError)):
            Manifest.decode(text, "x")


def test_every_flipped_bit_of_a_segment_is_found(life: Life) -> None:
    data = life.archive(2, 2).read_bytes()
    for position in range(len(data)):
        altered = bytearray(data)
        altered[position] ^= 1
        with pytest.raises((CorruptStateError, ConfigError)):
            decode_segment(bytes(altered), "x")
        with pytest.raises(CorruptStateError):
            decode_segment(data[:position], "x")


def test_a_file_under_another_name_is_not_what_it_says(life: Life, tmp_path: Path) -> None:
    path = life.save()
    life.put(b"b")
    other = life.save()
    shutil.copy(path, other)
    found = materialize(str(life.root), scratch=tmp_path / "s")
    assert found.revision == 2
    assert "another snapshot than its name says" in found.notes[0]


def test_a_file_of_another_cluster_is_not_published(life: Life, tmp_path: Path) -> None:
    elsewhere = Repository(open_objects(str(tmp_path / "else")), 0xEE)
    with pytest.raises(ConfigError, match="is of cluster c1, this is the place of ee"):
        elsewhere.save(life.snapshot_file(tmp_path / "x"), saved_by="t")


def test_an_empty_place_and_an_unknown_cluster_are_said(life: Life, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(NotCoveredError, match="holds no backups"):
        materialize(str(tmp_path / "nothing"), scratch=tmp_path / "s")
    life.save()
    with pytest.raises(NotCoveredError, match="no backup of cluster 5; it has c1"):
        materialize(str(life.root), cluster_id=5, scratch=tmp_path / "s")


def test_of_several_clusters_the_newest_is_taken_and_said(life: Life, tmp_path: Path) -> None:
    life.save()
    (life.root / "00000000000000ee" / "snapshots").mkdir(parents=True)
    found = materialize(str(life.root), scratch=tmp_path / "s")
    assert "several clusters: taken is c1" in found.notes[0]


def test_one_file_is_one_state(life: Life, tmp_path: Path) -> None:
    file = str(life.snapshot_file(tmp_path / "x.qdsnap"))
    assert materialize(file, to_revision=2, scratch=tmp_path / "s").state_hash == life.store.state_hash()
    with pytest.raises(NotCoveredError, match="is one snapshot, of revision 2"):
        materialize(file, to_revision=1, scratch=tmp_path / "s")
    with pytest.raises(ConfigError, match="not by both"):
        materialize(file, to_revision=1, to_time_ms=1, scratch=tmp_path / "s")


def test_the_audit_finds_damage_and_gaps(life: Life, tmp_path: Path) -> None:
    path = life.save()
    for key in (b"b", b"c", b"d"):
        life.put(key)
    life.archive(3, 3)
    segment = life.archive(5, 5)
    assert audit(life.repository, tmp_path).problems == ["the log has a gap: entries 4 to 4 are missing"]
    damage(path)
    damage(segment)
    problems = audit(life.repository, tmp_path).problems
    assert [any(word in problem for problem in problems) for word in ("manifest", "checksum", "gap")] == [True] * 3


def test_the_audit_without_a_key_compares_checksums(tmp_path: Path) -> None:
    life = sealed_life(tmp_path)
    closed = Repository(open_objects(str(life.root)), CLUSTER)
    found = audit(closed, tmp_path)
    assert (found.problems, found.unread) == ([], 3)
    assert audit(life.repository, tmp_path).unread == 0
    damage(Path(life.repository.locate(life.repository.snapshots()[0])))
    assert "its checksum is not the one in its manifest" in audit(closed, tmp_path).problems[0]


def test_names_tell_what_they_name() -> None:
    snapshot = SnapshotName(3, 0x30, 1_700, 0x27)
    for sealed in (False, True):
        name = SnapshotName(3, 0x30, 1_700, 0x27, sealed)
        assert SnapshotName.parse(str(name)) == name
        segment = SegmentName(1, 2, 3, 4, 5, sealed)
        assert SegmentName.parse(str(segment)) == segment
    pack = SegmentName(1, 2, 3, 4, 5, packed=True)
    assert SegmentName.parse(str(pack)) == pack
    for text in ("", "x.qdsnap", "1-2-3.qdlog", f"{snapshot}.json", "2-1-1-1-1.qdlog", "-1-1-1-1-1.qdlog"):
        assert (SnapshotName.parse(text), SegmentName.parse(text)) == (None, None)


def test_a_pack_holds_segments_without_a_gap(life: Life) -> None:
    with pytest.raises(ValueError, match="without a gap"):
        encode_pack([])
    with pytest.raises(CorruptStateError, match="is no pack"):
        find_part(b"QDLOGSG\n", 1, "x")


def test_what_is_in_a_file_is_counted_by_kind(life: Life, tmp_path: Path) -> None:
    life.put(b"/registry/pods/default/web-1", b"12345")
    life.put(b"/registry/pods/default/web-2", b"12345")
    contents = contents_of(life.snapshot_file(tmp_path / "x"))
    assert [(group.prefix, group.keys, group.bytes) for group in contents.groups] == [
        ("/registry/pods/", 2, 66),
        ("(others)", 1, 2),
    ]
    assert (contents.keys, contents.state_hash) == (3, life.store.state_hash())
    assert [group_of(key) for key in (b"/a/b", b"a/b/c", b"\xff/x", b"/x")] == ["/a/", "a/", "\\xff/", "(others)"]


def test_the_archive_of_a_cluster_recovered_without_its_majority_is_sound(life: Life, tmp_path: Path) -> None:
    """Both histories lie there, and go on at the same entries."""
    recovered = Life(life.root, term=life.term)
    life.save()
    for key in (b"a", b"b", b"c", b"d"):
        life.put(key)
    life.archive(2, 3)
    life.archive(4, 5)
    recovered.put(b"a")
    recovered.term = 1_000_007
    recovered.put(b"on its own")
    recovered.save()
    recovered.put(b"more")
    recovered.archive(4, 4)
    recovered.put(b"and more")
    recovered.archive(5, 5)
    assert audit(life.repository, tmp_path).problems == []
    life.archive(5, 5, previous_term=7)
    assert ["entry 4 has term" in problem for problem in audit(life.repository, tmp_path).problems] == [True]


def test_a_place_that_is_not_there_is_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nosuch\.qdsnap: no such file or folder"):
        materialize(str(tmp_path / "nosuch.qdsnap"), scratch=tmp_path / "scratch")
