"""A local cluster whose store is an etcd cluster: its plan, its processes, and what is said where etcd is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.base import identity
from controlplane.base.errors import ConfigError
from controlplane.base.pki import read_certificate
from controlplane.local import etcd
from controlplane.local.cluster import LocalCluster
from controlplane.local.etcd_restore import save_store
from controlplane.local.processes import ProcessError
from controlplane.local.spec import ClusterSpec, plan


def external() -> ClusterSpec:
    return plan(replicas=3, nodes=1, port_base=20_000, store="etcd")


def test_three_members_beside_the_replicas_on_ports_of_their_own() -> None:
    spec = external()
    assert [m.name for m in spec.store] == ["etcd-1", "etcd-2", "etcd-3"]
    assert spec.kv_endpoints == ["127.0.0.1:20015", "127.0.0.1:20025", "127.0.0.1:20035"]
    addresses = [a for m in spec.store for a in (m.client, m.peer)]
    addresses += [a for r in spec.replicas for a in (r.client, r.metrics, r.peer)]
    assert len(set(addresses)) == len(addresses)
    assert spec.store_kind == "etcd"


def test_without_a_store_apart_the_replicas_serve_the_etcd_api() -> None:
    spec = plan(replicas=3, nodes=1, port_base=20_000)
    assert spec.store == ()
    assert spec.kv_endpoints == spec.endpoints
    assert spec.store_kind == "embedded"


def test_another_store_is_refused() -> None:
    with pytest.raises(ConfigError, match="STORE=zookeeper: want embedded or etcd"):
        plan(replicas=1, nodes=0, port_base=20_000, store="zookeeper")


def test_the_plan_survives_its_file(tmp_path: Path) -> None:
    spec = external()
    spec.save(tmp_path / "cluster.json")
    assert ClusterSpec.load(tmp_path / "cluster.json") == spec


def test_the_store_comes_first_among_the_processes(tmp_path: Path) -> None:
    cluster = LocalCluster.create(tmp_path / "c", external())
    assert cluster.names == ["etcd-1", "etcd-2", "etcd-3", "r1", "r2", "r3", "node-1"]
    with pytest.raises(ProcessError, match="no member of the store runs"):
        save_store(cluster, tmp_path / "file")


def test_a_member_is_told_of_all_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd, "program", lambda name: f"/usr/bin/{name}")
    spec = external()
    argv = etcd.member_argv(spec.store[1], spec, tmp_path)
    assert argv[0] == "/usr/bin/etcd"
    settings = dict(zip(argv[1::2], argv[2::2], strict=True))
    assert settings["--name"] == "etcd-2"
    assert settings["--initial-cluster"] == (
        "etcd-1=http://127.0.0.1:20016,etcd-2=http://127.0.0.1:20026,etcd-3=http://127.0.0.1:20036"
    )
    assert settings["--initial-cluster-token"] == spec.token


def test_with_tls_both_ports_of_a_member_want_certificates_of_the_clusters_authority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etcd, "program", lambda name: f"/usr/bin/{name}")
    spec = plan(replicas=3, nodes=1, port_base=20_000, store="etcd", tls=True)
    cluster = LocalCluster.create(tmp_path / "c", spec)
    me = spec.store[0]
    tls = cluster.certificate(identity.member(me.name), me.client, me.peer)
    assert tls is not None
    argv = etcd.member_argv(me, spec, tmp_path, tls)
    assert {"--client-cert-auth", "--peer-client-cert-auth"} <= set(argv)
    assert not any("http://" in word for word in argv)
    for flag in ("--trusted-ca-file", "--peer-trusted-ca-file"):
        assert argv[argv.index(flag) + 1] == str(cluster.pki.ca.absolute())
    names = read_certificate(tls.cert.read_bytes()).names
    assert {"etcd-1", "localhost", "127.0.0.1"} <= set(names)


def test_a_missing_program_is_named_with_the_package_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ConfigError, match="apt-get install etcd-server"):
        etcd.program("etcd")
