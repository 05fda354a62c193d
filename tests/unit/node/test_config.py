"""Settings of the agent: what is wrong is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from controlplane.base.errors import ConfigError
from node.config import AgentConfig, TaintConfig, parse_capacity, parse_labels, parse_taint


def config(tmp_path: Path, **changed: Any) -> AgentConfig:
    fields: dict[str, Any] = {"name": "node-1", "endpoints": ("127.0.0.1:1",), "state_dir": tmp_path / "n"}
    return AgentConfig(**{**fields, **changed})


def test_a_good_one_passes(tmp_path: Path) -> None:
    config(tmp_path).validate()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"name": "Node_1"}, "--name 'Node_1'"),
        ({"endpoints": ()}, "--endpoints"),
        ({"endpoints": ("nowhere",)}, "nowhere"),
        ({"listen": "127.0.0.1:99999"}, "99999"),
        ({"listen": "127.0.0.1:5", "metrics_listen": "127.0.0.1:5"}, "two addresses"),
        ({"state_dir": Path("/no/such/place")}, "/no/such/place.*parent"),
        ({"state_dir": Path("/dev/null")}, "is a file"),
        ({"log_bytes_max": 10}, "--log-max-bytes 10"),
        ({"log_files_max": 0}, "--log-max-files 0"),
        ({"shutdown_grace_s": -1.0}, "--shutdown-grace -1"),
        ({"log_level": "loud"}, "loud"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, changed: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        config(tmp_path, **changed).validate()


def test_labels_capacity_and_taints_are_read() -> None:
    assert parse_labels(("zone=a", "example.com/x=")) == {"zone": "a", "example.com/x": ""}
    assert parse_capacity("cpu=4,memory=8Gi,pods=110") == {"cpu": "4", "memory": "8Gi", "pods": "110"}
    assert parse_taint("gpu=yes:NoSchedule") == TaintConfig("gpu", "yes", "NoSchedule")
    assert parse_taint("gpu:NoExecute") == TaintConfig("gpu", "", "NoExecute")


@pytest.mark.parametrize("text", ["cpu", "cores=4", "cpu=many", "cpu=0"])
def test_a_wrong_capacity_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--capacity"):
        parse_capacity(text)


@pytest.mark.parametrize("text", ["gpu", "gpu=yes", "gpu:Never", ":NoSchedule"])
def test_a_wrong_taint_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--taint"):
        parse_taint(text)


@pytest.mark.parametrize("text", ["zone", "=x", "a=b c"])
def test_a_wrong_label_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--label"):
        parse_labels((text,))
