"""From Services and EndpointSlices to frontends."""

from __future__ import annotations

from controlplane.pb.k8s.core_v1_pb2 import Service
from controlplane.pb.k8s.discovery_v1_pb2 import EndpointSlice
from node.proxy.table import Frontend, build


def service(name: str = "web", ip: str = "127.96.0.1", port: int = 80, created_s: int = 1, **spec: object) -> Service:
    made = Service()
    made.metadata.name = name
    made.metadata.namespace = "default"
    made.metadata.creationTimestamp.seconds = created_s
    made.spec.clusterIP = ip
    made.spec.ports.add(name="http", port=port)
    for key, value in spec.items():
        setattr(made.spec, key, value)
    return made


def endpoint_slice(*endpoints: tuple[str, bool | None], owner: str = "web", port: int = 8080) -> EndpointSlice:
    made = EndpointSlice()
    made.metadata.namespace = "default"
    made.metadata.labels["kubernetes.io/service-name"] = owner
    made.ports.add(name="http", port=port, protocol="TCP")
    for ip, ready in endpoints:
        endpoint = made.endpoints.add(addresses=[ip])
        if ready is not None:
            endpoint.conditions.ready = ready
    return made


def test_only_ready_endpoints_are_used_and_unset_means_ready() -> None:
    table = build([service()], [endpoint_slice(("127.1.0.1", True), ("127.1.0.2", False), ("127.1.0.3", None))])
    assert table[Frontend("127.96.0.1", 80, "TCP")].endpoints == (("127.1.0.1", 8080), ("127.1.0.3", 8080))


def test_a_service_may_ask_for_unready_endpoints_too() -> None:
    table = build([service(publishNotReadyAddresses=True)], [endpoint_slice(("127.1.0.2", False))])
    assert table[Frontend("127.96.0.1", 80, "TCP")].endpoints == (("127.1.0.2", 8080),)


def test_ports_are_matched_by_name_over_all_slices() -> None:
    other = endpoint_slice(("127.1.0.9", True))
    other.ports[0].name = "metrics"
    table = build([service()], [endpoint_slice(("127.1.0.1", True)), other, endpoint_slice(("127.1.0.2", True))])
    assert table[Frontend("127.96.0.1", 80, "TCP")].endpoints == (("127.1.0.1", 8080), ("127.1.0.2", 8080))


def test_headless_and_external_name_services_have_no_frontend() -> None:
    assert build([service(ip="None"), service(ip=""), service(type="ExternalName")], []) == {}


def test_external_ips_are_frontends_too() -> None:
    made = service()
    made.spec.externalIPs.append("127.97.0.1")
    assert set(build([made], [])) == {Frontend("127.96.0.1", 80, "TCP"), Frontend("127.97.0.1", 80, "TCP")}


def test_the_older_of_two_services_keeps_a_frontend_both_claim() -> None:
    table = build([service("late", created_s=9), service("early", created_s=3)], [])
    assert table[Frontend("127.96.0.1", 80, "TCP")].service == "early"


def test_session_affinity_has_kubernetes_default_of_three_hours() -> None:
    table = build([service(sessionAffinity="ClientIP")], [])
    assert table[Frontend("127.96.0.1", 80, "TCP")].affinity_s == 10_800


def test_slices_of_other_services_are_not_used() -> None:
    table = build([service()], [endpoint_slice(("127.1.0.1", True), owner="db")])
    assert table[Frontend("127.96.0.1", 80, "TCP")].endpoints == ()
