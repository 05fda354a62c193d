"""``host:port`` and nothing else."""

from __future__ import annotations

import pytest

from controlplane.base.addresses import split_address
from controlplane.base.errors import ConfigError


@pytest.mark.parametrize(
    ("address", "parts"),
    [("127.0.0.1:7401", ("127.0.0.1", 7401)), ("[::1]:0", ("::1", 0)), ("db.example:65535", ("db.example", 65535))],
)
def test_an_address_is_host_and_port(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address) == parts


@pytest.mark.parametrize("address", ["", "localhost", ":80", "h:70000", "h:x", "h:-1", "h:\u00b2", "h:"])
def test_a_wrong_address_is_refused_with_an_example(address: str) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT"):
        split_address(address)
