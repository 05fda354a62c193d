"""The reference that says who manages an object."""

from __future__ import annotations

import pytest

from controlplane.controllers.ownership import controller_of, controller_reference
from controlplane.pb.k8s.apps_v1_pb2 import Deployment, ReplicaSet
from controlplane.pb.k8s.core_v1_pb2 import Pod, Service


@pytest.mark.parametrize(
    ("owner", "api_version", "kind"),
    [(Deployment(), "apps/v1", "Deployment"), (ReplicaSet(), "apps/v1", "ReplicaSet"), (Service(), "v1", "Service")],
)
def test_an_owner_is_named_as_the_api_names_it(
    owner: Deployment | ReplicaSet | Service, api_version: str, kind: str
) -> None:
    owner.metadata.name, owner.metadata.uid = "web", "u-1"
    made = controller_reference(owner)
    assert (made.apiVersion, made.kind, made.name, made.uid) == (api_version, kind, "web", "u-1")
    assert made.controller
    assert made.blockOwnerDeletion


def test_an_owner_that_does_not_control_is_not_the_controller() -> None:
    pod = Pod()
    assert controller_of(pod.metadata) is None
    pod.metadata.ownerReferences.add(kind="Service", name="other", uid="u-0")
    assert controller_of(pod.metadata) is None
    rs = ReplicaSet()
    rs.metadata.uid = "u-1"
    pod.metadata.ownerReferences.append(controller_reference(rs))
    found = controller_of(pod.metadata)
    assert found is not None
    assert found.uid == "u-1"
