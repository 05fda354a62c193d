"""The table of kinds agrees with the ``Object`` message and with the interface."""

from __future__ import annotations

from typing import get_args

import pytest

from controlplane.client.interface import K8sObject
from controlplane.client.kinds import KINDS, info_for_field, info_for_resource, info_of, unwrap, unwrap_any, wrap
from controlplane.pb.k8s.core_v1_pb2 import Node, Pod
from controlplane.pb.quarterdeck.v1 import api_pb2


def test_every_member_of_object_has_one_row_with_its_message() -> None:
    members = {f.name: f.message_type.full_name for f in api_pb2.Object.DESCRIPTOR.fields if f.message_type}
    assert members == {row.field: row.message.DESCRIPTOR.full_name for row in KINDS}


def test_every_kind_of_the_interface_has_a_row() -> None:
    assert {row.message for row in KINDS} == set(get_args(K8sObject))


def test_rows_are_found_by_each_name() -> None:
    for row in KINDS:
        assert info_of(row.message) is info_for_resource(row.resource) is info_for_field(row.field) is row


def test_wrapping_copies_and_unwrapping_gives_it_back() -> None:
    pod = Pod()
    pod.metadata.name = "a"
    wrapped = wrap(pod)
    pod.metadata.name = "changed"
    assert unwrap(Pod, wrapped).metadata.name == "a"
    assert unwrap_any(wrapped) == unwrap(Pod, wrapped)


def test_the_wrong_kind_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="expected an Object holding node, got pod"):
        unwrap(Node, wrap(Pod()))
    with pytest.raises(TypeError, match="got nothing"):
        unwrap(Node, api_pb2.Object())
    with pytest.raises(TypeError, match="holds nothing"):
        unwrap_any(api_pb2.Object())
