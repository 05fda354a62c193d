"""Environment, variable expansion and volumes of containers."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.pb.k8s.core_v1_pb2 import ConfigMap
from node.environment import ContainerConfigError, PodFacts, build_env, config_maps_of, expand
from node.layout import Layout, UnsafeNameError
from node.quantity import parse_quantity, whole
from node.volumes import links_of, make_volumes
from tests.unit.node.support import make_pod

FACTS = PodFacts("node-1", "127.0.0.1", "127.130.1.2", Path("/v"), "/bin")


def test_a_process_is_told_who_it_is_and_nothing_of_the_agent() -> None:
    pod = make_pod("a")
    env = build_env(pod, pod.spec.containers[0], FACTS, {})
    assert env == {
        "PATH": "/bin",
        "POD_NAME": "a",
        "POD_NAMESPACE": "default",
        "POD_UID": "uid-a",
        "POD_IP": "127.130.1.2",
        "NODE_NAME": "node-1",
        "HOSTNAME": "a",
        "QD_VOLUMES": "/v",
    }


def test_values_come_from_fields_config_maps_and_earlier_variables() -> None:
    pod = make_pod("a")
    pod.metadata.labels["app"] = "web"
    pod.spec.containers[0].resources.limits["cpu"].string = "1500m"
    container = pod.spec.containers[0]
    container.envFrom.add(prefix="P_").configMapRef.localObjectReference.name = "all"
    container.env.add(name="LABEL").valueFrom.fieldRef.fieldPath = "metadata.labels['app']"
    container.env.add(name="CPU").valueFrom.resourceFieldRef.resource = "limits.cpu"
    one = container.env.add(name="ONE").valueFrom.configMapKeyRef
    one.localObjectReference.name, one.key = "some", "k"
    container.env.add(name="URL", value="http://$(POD_IP)/$(LABEL)$$(X)/$(MISSING)")
    assert config_maps_of(container) == {"all", "some"}
    maps = {"all": ConfigMap(data={"x": "1"}), "some": ConfigMap(data={"k": "v"})}
    env = build_env(pod, container, FACTS, maps)
    assert (env["P_x"], env["LABEL"], env["CPU"], env["ONE"]) == ("1", "web", "2", "v")
    assert env["URL"] == "http://127.130.1.2/web$(X)/$(MISSING)"


def test_a_missing_config_map_is_an_error_that_names_it_unless_optional() -> None:
    pod = make_pod("a")
    container = pod.spec.containers[0]
    source = container.envFrom.add().configMapRef
    source.localObjectReference.name = "gone"
    with pytest.raises(ContainerConfigError, match='configmap "gone" not found'):
        build_env(pod, container, FACTS, {"gone": None})
    source.optional = True
    assert "POD_NAME" in build_env(pod, container, FACTS, {"gone": None})


@pytest.mark.parametrize(
    ("text", "value"), [("$(A)", "1"), ("$$(A)", "$(A)"), ("$(B)", "$(B)"), ("$", "$"), ("$$", "$")]
)
def test_expansion(text: str, value: str) -> None:
    assert expand(text, {"A": "1"}) == value


def test_volumes_are_directories_reached_by_links(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    pod = make_pod("a")
    pod.spec.volumes.add(name="scratch").volumeSource.emptyDir.SetInParent()
    settings = pod.spec.volumes.add(name="settings").volumeSource.configMap
    settings.localObjectReference.name = "cm"
    pod.spec.containers[0].volumeMounts.add(name="scratch", mountPath="/data")
    pod.spec.containers[0].volumeMounts.add(name="settings", mountPath="/etc/app", subPath="a")
    make_volumes(layout, pod, {"cm": ConfigMap(data={"a": "text"})})
    links = links_of(layout, pod, pod.spec.containers[0])
    assert links["data"].is_dir()
    assert links["etc/app"].read_text() == "text"


def test_a_path_out_of_the_container_is_refused(tmp_path: Path) -> None:
    pod = make_pod("a")
    pod.spec.volumes.add(name="v").volumeSource.emptyDir.SetInParent()
    pod.spec.containers[0].volumeMounts.add(name="v", mountPath="/a/../../b")
    with pytest.raises(ContainerConfigError, match="without"):
        links_of(Layout(tmp_path), pod, pod.spec.containers[0])
    with pytest.raises(UnsafeNameError):
        Layout(tmp_path).pod("../x")


def test_a_volume_kind_that_is_not_served_is_named(tmp_path: Path) -> None:
    pod = make_pod("a")
    pod.spec.volumes.add(name="v").volumeSource.persistentVolumeClaim.claimName = "c"
    with pytest.raises(ContainerConfigError, match="emptyDir, configMap and hostPath"):
        make_volumes(Layout(tmp_path), pod, {})


@pytest.mark.parametrize(
    ("text", "value"), [("2", 2), ("100m", 1), ("1.5Gi", 1610612736), ("1e3", 1000), ("64Mi", 2**26)]
)
def test_quantities(text: str, value: int) -> None:
    assert whole(text) == value


@pytest.mark.parametrize("text", ["", "1x", "Mi", "1 Gi", "--1"])
def test_what_is_no_quantity(text: str) -> None:
    with pytest.raises(ValueError, match="not a quantity"):
        parse_quantity(text)
