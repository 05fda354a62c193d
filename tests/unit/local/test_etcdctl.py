"""etcdctl is told where a local cluster's store is, and which certificate to show."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.local import etcdctl
from controlplane.local.cluster import LocalCluster
from controlplane.local.processes import ProcessError
from controlplane.local.spec import plan
from tests.unit.local.support import script


@pytest.mark.parametrize(("tls", "scheme"), [(False, "http"), (True, "https")])
def test_the_line_and_the_environment_name_every_replica_and_the_administrators_certificate(
    tmp_path: Path, tls: bool, scheme: str
) -> None:
    cluster = LocalCluster.create(tmp_path / "c", plan(replicas=3, nodes=0, port_base=20_000, tls=tls))
    endpoints = ",".join(f"{scheme}://{replica.client}" for replica in cluster.spec.replicas)
    line, environment = etcdctl.line(cluster), etcdctl.environment(cluster)
    assert line.startswith(f"ETCDCTL_API=3 etcdctl --endpoints {endpoints}")
    assert environment["ETCDCTL_ENDPOINTS"] == endpoints
    if tls:
        files = cluster.pki.admin
        assert line.endswith(f"--cacert {files.ca} --cert {files.cert} --key {files.key}")
        assert environment["ETCDCTL_KEY"] == str(files.key.absolute())
    else:
        assert "--cert" not in line
        assert "ETCDCTL_CERT" not in environment


def test_it_is_run_without_settings_of_its_own_and_a_failure_has_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(
        tmp_path / "etcdctl", 'echo "api=$ETCDCTL_API user=$ETCDCTL_USER."; [ "$1" = good ] || { echo no >&2; exit 3; }'
    )
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("ETCDCTL_USER", "somebody")
    assert etcdctl.run("good") == "api=3 user=.\n"
    with pytest.raises(ProcessError, match="etcdctl bad thing: no"):
        etcdctl.run("bad", "thing")
