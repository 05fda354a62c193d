"""Pod addresses: one per pod, none that just went, remembered by the next agent."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.podips import NoAddressError, PodIPs


def test_each_pod_has_its_own_and_keeps_it(tmp_path: Path) -> None:
    ips = PodIPs(tmp_path / "ips.json")
    ips.set_cidr("127.130.1.0/24")
    assert ips.allocate("a") == "127.130.1.2"
    assert ips.allocate("b") == "127.130.1.3"
    assert ips.allocate("a") == "127.130.1.2"


def test_a_freed_address_is_the_last_to_come_back_also_after_a_restart(tmp_path: Path) -> None:
    ips = PodIPs(tmp_path / "ips.json")
    ips.set_cidr("127.130.1.0/29")  # hosts .2 to .6
    assert ips.allocate("a") == "127.130.1.2"
    ips.release("a")
    again = PodIPs(tmp_path / "ips.json")
    assert [again.allocate(uid) for uid in "bcde"] == [f"127.130.1.{n}" for n in (3, 4, 5, 6)]
    assert again.allocate("f") == "127.130.1.2"
    with pytest.raises(NoAddressError, match="all 5 addresses"):
        again.allocate("g")


def test_an_adopted_address_is_not_given_twice(tmp_path: Path) -> None:
    ips = PodIPs(tmp_path / "ips.json")
    ips.set_cidr("127.130.1.0/24")
    ips.hold("old", "127.130.1.2")
    assert ips.allocate("new") == "127.130.1.3"


def test_without_a_range_there_is_no_address(tmp_path: Path) -> None:
    with pytest.raises(NoAddressError, match="no pod range"):
        PodIPs(tmp_path / "ips.json").allocate("a")
