"""``qd snapshot import``: a dry run says what a real one would do."""

from __future__ import annotations

from pathlib import Path

from tests.unit.cli.rig import Rig

EXPORTED = """\
apiVersion: v1
kind: Namespace
metadata: {name: moved}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: kept, namespace: moved}
data: {is: old}
"""


def test_a_dry_run_passes_over_a_namespace_that_a_real_one_would_have_made(rig: Rig, tmp_path: Path) -> None:
    path = tmp_path / "all.yaml"
    path.write_text(EXPORTED)
    assert rig.ok("snapshot", "import", str(path), "--dry-run").splitlines() == [
        "namespace/moved created (server dry run)",
        "configmap/kept created (dry run, not checked: its namespace is not there yet)",
    ]
    assert rig.run("get", "namespace", "moved").exit_code == 1
    assert rig.ok("snapshot", "import", str(path)).splitlines() == [
        "namespace/moved created", "configmap/kept created",
    ]  # fmt: skip
    again = rig.ok("snapshot", "import", str(path), "--dry-run").splitlines()
    assert [line.split()[1] for line in again] == ["unchanged", "unchanged"]


def test_a_dry_run_in_a_namespace_that_nothing_makes_is_refused(rig: Rig, tmp_path: Path) -> None:
    path = tmp_path / "part.yaml"
    path.write_text(EXPORTED.partition("---\n")[2])
    done = rig.run("snapshot", "import", str(path), "--dry-run")
    assert done.exit_code == 1
    assert 'namespaces "moved" not found' in done.stderr
