"""What a replica imports before it takes part: every millisecond of it is paid by each of three at a restart of all."""

from __future__ import annotations

import subprocess
import sys

import pytest

_WAITS = (
    "aiohttp",
    "controlplane.backup",
    "controlplane.base.pki",
    "controlplane.controllers",
    "controlplane.external.backbone",
    "controlplane.scheduler",
    "controlplane.second_stage",
    "fsspec",
    "jinja2",
    "matplotlib",
    "numpy",
    "rich",
)


def _imported_by(statement: str) -> frozenset[str]:
    asked = f"import sys; {statement}; print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    return frozenset(done.stdout.split())


@pytest.mark.slow
def test_what_serves_no_write_is_not_imported_before_a_replica_takes_part() -> None:
    early = _imported_by("import controlplane.__main__, controlplane.app")
    assert "controlplane.app" in early
    assert not early.intersection(_WAITS)


@pytest.mark.slow
def test_the_second_stage_imports_what_is_later_used_on_the_loop() -> None:
    loaded = _imported_by("from controlplane import second_stage")
    assert {"aiohttp", "numpy", "controlplane.etcd.gateway", "controlplane.etcd.export"} <= loaded
