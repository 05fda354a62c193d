"""``qd snapshot restore|export|import`` and ``qd diff`` as an operator types them, on one cluster that serves all the
while; and every refusal with its reason, after which nothing has changed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from controlplane.pb.quarterdeck.internal.v1.snapshot_pb2 import SnapshotHeader
from controlplane.raft import snapshot_format
from controlplane.raft.snapshot_format import encode_snapshot_file, read_snapshot_file
from tests.e2e.support import QD, Qd, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

PORT_BASE = "15950"
#: The archive's interval is a second.
_ARCHIVED_S = 3.0


@pytest.fixture(scope="module")
def qd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Qd]:
    made = Qd(tmp_path_factory.mktemp("snapshots"))
    try:
        made.ok("local", "up", "--nodes", "1", "--port-base", PORT_BASE)
        yield made
    finally:
        made.clean_up()
    assert made.processes() == []


def config_map(name: str, value: str, namespace: str = "default") -> str:
    return (
        "apiVersion: v1\nkind: ConfigMap\n"
        f"metadata: {{name: {name}, namespace: {namespace}}}\ndata: {{is: {value}}}\n---\n"
    )


def apply(qd: Qd, *manifests: str) -> None:
    path = qd.folder / "manifest.yaml"
    path.write_text("".join(manifests))
    qd.ok("apply", "-f", str(path))


def found(qd: Qd, name: str, namespace: str = "default") -> str | None:
    """What the ConfigMap holds; None: there is none."""
    done = qd.run("get", "configmap", name, "-n", namespace, "-o", "json")
    if done.returncode:
        assert "not found" in done.stderr, done.stderr
        return None
    return str(json.loads(done.stdout)["data"]["is"])


def saved(qd: Qd, name: str) -> Path:
    path = qd.folder / name
    qd.ok("snapshot", "save", str(path))
    return path


def revision(qd: Qd) -> int:
    found = json.loads(qd.ok("get", "configmap", "moment", "-o", "json").stdout)
    return int(found["metadata"]["resourceVersion"])


def gone(qd: Qd, namespace: str) -> None:
    qd.ok("delete", "namespace", namespace)
    wait_until(lambda: qd.run("get", "namespace", namespace).returncode == 1, 60)


def another(file: Path, path: Path, monkeypatch: pytest.MonkeyPatch, *, cluster: int = 0, version: int = 1) -> Path:
    """The same state as of another cluster, or in another format; whole in itself."""
    info, chunks = read_snapshot_file(file)
    header = SnapshotHeader()
    header.CopyFrom(info.header)
    header.cluster_id = cluster or header.cluster_id
    with monkeypatch.context() as patch:
        patch.setattr(snapshot_format, "FORMAT_VERSION", version)
        path.write_bytes(b"".join(encode_snapshot_file(header, chunks)))
    return path


def refused(qd: Qd, reason: str, *argv: str, code: int = 1) -> subprocess.CompletedProcess[str]:
    done = qd.run("snapshot", "restore", *argv)
    assert done.returncode == code, f"{argv}: {done.stdout}{done.stderr}"
    assert re.search(reason, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    return done


def on_a_small_disk(qd: Qd, *argv: str) -> subprocess.CompletedProcess[str]:
    """``qd`` with 4 MiB of room for temporary files: in a mount namespace of its own, so that nobody else meets it."""
    enter = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    (qd.folder / "small").mkdir(exist_ok=True)
    return subprocess.run(
        [*enter, "sh", "-ec", 'mount -t tmpfs -o size=4m small "$TMPDIR"; exec "$@"', "sh", str(QD), *argv],
        cwd=qd.folder, env={**qd.environment, "TMPDIR": str(qd.folder / "small")}, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip


def test_a_cluster_goes_back_to_a_revision_and_to_a_moment(qd: Qd) -> None:
    archive = str(qd.root / "archive")
    qd.ok("snapshot", "save")
    moments, revisions = [], []
    for value in "one", "two", "three":
        apply(qd, config_map("moment", value))
        revisions.append(revision(qd))
        time.sleep(0.2)  # real replicas' clocks: the moment lies between two writes
        moments.append(datetime.now(UTC).isoformat(timespec="milliseconds"))
        time.sleep(0.2)
    time.sleep(_ARCHIVED_S)
    done = qd.ok("snapshot", "restore", archive, "--to-revision", str(revisions[1]), "--yes")
    assert f"recovery point: revision {revisions[1]}, " in done.stderr
    assert re.search(r"recovery time \d+\.\d\d s, of which the swap \d\.\d+ s", done.stderr)
    assert re.search(r"state hash [0-9a-f]+ at revision \d+ on r1, r2, r3; content [0-9a-f]{16}", done.stderr)
    assert found(qd, "moment") == "two"
    assert revision(qd) == revisions[1]
    qd.ok("snapshot", "restore", archive, "--to-time", moments[0], "--yes")
    assert found(qd, "moment") == "one"
    # A restore is a write like others: the state before the first one is still there.
    qd.ok("snapshot", "restore", archive, "--to-time", moments[2], "--yes")
    assert found(qd, "moment") == "three"
    refused(
        qd, r"revision 9000000000 is not covered: .* Covered: revision", archive, "--to-revision", "9000000000", "--yes"
    )
    refused(qd, "is not covered", archive, "--to-time", "2001-01-01T00:00:00Z", "--yes")
    refused(qd, "'yesterday' is no time; write it as", archive, "--to-time", "yesterday", "--yes", code=2)
    refused(qd, "by its revision or by a time, not by both", archive, "--to-time", moments[0], "--to-revision", "5",
            "--yes", code=2)  # fmt: skip
    assert found(qd, "moment") == "three"


def test_a_namespace_and_an_object_come_back_and_the_rest_stays(qd: Qd) -> None:
    namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: part}\n---\n"
    apply(qd, namespace, config_map("changed", "old", "part"), config_map("lost", "there", "part"))
    apply(qd, config_map("elsewhere", "old"))
    file = str(saved(qd, "part.qdsnap"))
    apply(qd, config_map("changed", "new", "part"), config_map("came", "late", "part"), config_map("elsewhere", "new"))
    qd.ok("delete", "configmap", "lost", "-n", "part")
    said = qd.ok("snapshot", "restore", file, "--namespace", "part", "--dry-run").stdout.splitlines()
    assert [line for line in said if not line.startswith(" ")] == [
        "~ configmap/changed in namespace part put back (dry run)",
        "+ configmap/lost in namespace part created (dry run)",
    ]
    assert (found(qd, "changed", "part"), found(qd, "lost", "part")) == ("new", None)

    said = qd.ok("snapshot", "restore", file, "--object", "configmap/lost", "-n", "part").stdout.splitlines()
    assert said == ["+ configmap/lost in namespace part created"]
    assert (found(qd, "changed", "part"), found(qd, "lost", "part")) == ("new", "there")

    said = qd.ok("snapshot", "restore", file, "--namespace", "part").stdout.splitlines()
    assert "~ configmap/changed in namespace part put back" in said
    assert "    data.is: 'new' -> 'old'" in said
    assert "  configmap/lost in namespace part unchanged" in said
    assert [found(qd, name, "part") for name in ("changed", "lost", "came")] == ["old", "there", "late"]
    assert found(qd, "elsewhere") == "new"

    gone(qd, "part")
    said = qd.ok("snapshot", "restore", file, "--namespace", "part").stdout.splitlines()
    assert said[0] == "+ namespace/part created"
    assert [found(qd, name, "part") for name in ("changed", "lost", "came")] == ["old", "there", None]

    refused(qd, "the snapshot has no namespace 'nowhere'", file, "--namespace", "nowhere", code=2)
    refused(
        qd,
        "the snapshot has no configmap/lost in namespace default; --namespace says",
        file,
        "--object",
        "configmap/lost",
        code=2,
    )
    refused(qd, "'thing'", file, "--object", "thing/lost", code=2)
    refused(qd, "--dry-run goes with --namespace or --object", file, "--dry-run", code=2)


def test_what_differs_is_exported_and_imported(qd: Qd) -> None:
    namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: moved}\n---\n"
    apply(qd, namespace, config_map("kept", "old", "moved"), config_map("lost", "there", "moved"))
    file = str(saved(qd, "moved.qdsnap"))
    same = qd.run("diff", file)
    assert (same.returncode, same.stdout) == (0, "")
    apply(qd, config_map("kept", "new", "moved"), config_map("came", "late", "moved"))
    qd.ok("delete", "configmap", "lost", "-n", "moved")
    differs = qd.run("diff", file)
    assert differs.returncode == 1, differs.stderr
    assert differs.stdout.splitlines() == [
        "+ configmap/came in namespace moved",
        "~ configmap/kept in namespace moved",
        '    data.is: "old" -> "new"',
        "- configmap/lost in namespace moved",
    ]
    listed = json.loads(qd.run("diff", file, "-o", "json").stdout)
    assert [(d["change"], d["name"]) for d in listed] == [("added", "came"), ("changed", "kept"), ("removed", "lost")]

    folder = qd.folder / "manifests"
    qd.ok("snapshot", "export", file, str(folder))
    assert "kept" in (folder / "moved" / "configmaps.yaml").read_text()
    gone(qd, "moved")
    dry = qd.ok("snapshot", "import", str(folder), "--dry-run").stdout
    assert "configmap/kept created (dry run, not checked: its namespace is not there yet)" in dry
    assert found(qd, "kept", "moved") is None
    said = qd.ok("snapshot", "import", str(folder)).stdout
    assert {"namespace/moved created", "configmap/kept created", "configmap/lost created"} <= set(said.splitlines())
    assert [found(qd, name, "moved") for name in ("kept", "lost", "came")] == ["old", "there", None]
    again = qd.ok("snapshot", "import", str(folder)).stdout.splitlines()
    assert [line for line in again if not line.endswith(" unchanged")] == []
    assert qd.run("diff", file).returncode == 0

    bad = qd.folder / "bad.yaml"
    bad.write_text("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndaat: {}\n")
    for argv, reason in (
        ((str(bad),), r"bad\.yaml: .*daat"), ((str(qd.folder / "nothing"),), "cannot read .*nothing: No such file"),
    ):  # fmt: skip
        done = qd.run("snapshot", "import", *argv)
        assert done.returncode == 2, done.stderr
        assert re.search(reason, done.stderr), done.stderr


def test_what_is_not_restored_is_refused_with_its_reason_and_nothing_changes(
    qd: Qd, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(qd, config_map("stays", "old"))
    file = saved(qd, "refused.qdsnap")
    qd.ok("snapshot", "save")
    apply(qd, config_map("stays", "new"))
    damaged = qd.folder / "damaged.qdsnap"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    newer = another(file, qd.folder / "newer.qdsnap", monkeypatch, version=2)
    older = another(file, qd.folder / "older.qdsnap", monkeypatch, version=0)
    foreign = another(file, qd.folder / "foreign.qdsnap", monkeypatch, cluster=0xC0FFEE)
    cases = (
        (damaged, "damaged.qdsnap is damaged or incomplete: its checksum does not match"),
        (newer, "newer.qdsnap has format 2, this version reads"),
        (older, "older.qdsnap has format 0, this version reads"),
        (foreign, " is of cluster c0ffee, this is (cluster )?[0-9a-f]+; .*--force"),
        (qd.folder / "missing.qdsnap", "missing.qdsnap: no such file or folder"),
        (qd.root / "cluster.json", "cluster.json is not a Quarterdeck snapshot"),
    )

    def each_is_refused() -> None:
        for path, reason in cases:
            done = qd.run("snapshot", "restore", str(path), "--yes")
            assert done.returncode in {1, 2}, f"{path.name}: {done.stdout}{done.stderr}"
            assert re.search(reason, done.stderr), done.stderr
            assert "Traceback" not in done.stderr

    each_is_refused()
    small = on_a_small_disk(qd, "snapshot", "restore", str(qd.root / "archive"), "--yes")
    assert small.returncode == 1, small.stderr
    assert re.search(r"takes \d+ bytes on the disk of \S+, which has \d+ free", small.stderr), small.stderr
    for path in (damaged, newer, older):
        assert qd.run("diff", str(path)).returncode in {2, 3}, "what cannot be compared is no difference"
    aborted = qd.run("snapshot", "restore", str(file))
    assert (aborted.returncode, "Replace the state of the running cluster" in aborted.stderr) == (1, True)
    assert found(qd, "stays") == "new"

    # The same where no replica runs: what is there stays, and starts again.
    for name in "r1", "r2", "r3":
        qd.ok("local", "stop", name)
    each_is_refused()
    nobody = qd.run("--endpoints", "127.0.0.1:1", "snapshot", "restore", str(file), "--yes")
    assert nobody.returncode == 2, nobody.stderr
    assert "no replica answers (127.0.0.1:1)" in nobody.stderr
    for name in "r1", "r2", "r3":
        qd.ok("local", "start", name)
    wait_until(lambda: qd.run("get", "configmap", "stays").returncode == 0, 60)
    assert found(qd, "stays") == "new"

    done = qd.ok("snapshot", "restore", str(foreign), "--yes", "--force")
    assert "on r1, r2, r3" in done.stderr
    assert found(qd, "stays") == "old"
