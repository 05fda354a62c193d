"""Hosts of their own: addresses and filter texts as values, and two real hosts whose link is cut."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from controlplane.base.errors import ConfigError
from controlplane.local.hosts import OUTSIDE, Hosts, divert_text, lose_text


def test_addresses_are_of_the_range_for_tests_and_differ_between_networks() -> None:
    assert Hosts(["a", "b"], network=3).address("b") == "198.18.3.2"
    assert Hosts(["a", "b"], network=258).address("a") == "198.19.2.1"


def test_a_network_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="0 to 511"):
        Hosts(["a"], network=512)


def test_a_command_is_run_inside_its_hosts_namespace() -> None:
    assert Hosts(["a"], network=7).enter("a") == ["ip", "netns", "exec", "qd7-a"]


def test_numbers_given_make_addresses_that_outlive_the_others() -> None:
    hosts = Hosts({"r2": 2, "node-7": 27}, network=3)
    assert hosts.address("node-7") == "198.18.3.27"
    assert hosts.address(OUTSIDE) == "198.18.3.254"


def test_what_is_lost_is_dropped_and_counted_in_one_direction_under_the_faults_name() -> None:
    assert lose_text("f1", [("02:71:64:00:03:01", "p2")]) == (
        'add rule netdev quarterdeck to_p2 ether saddr 02:71:64:00:03:01 ether type ip counter drop comment "f1"\n'
    )


def test_a_share_of_packets_is_lost() -> None:
    assert "numgen random mod 100 < 30 counter drop" in lose_text("f1", [("02:71:64:00:03:01", "p2")], 30)
    with pytest.raises(ValueError, match="1 to 100"):
        lose_text("f1", [("02:71:64:00:03:01", "p2")], 0)


def test_what_is_diverted_stops_in_the_switch() -> None:
    assert divert_text("f1", [("p1", "p2")], ends_only=True) == (
        "add rule bridge quarterdeck links iifname p1 oifname p2 ether type ip ip protocol tcp "
        'tcp flags & (fin) == fin counter drop comment "f1"\n'
    )


_LISTEN = """
import socket, sys
heard = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
heard.bind((sys.argv[1], int(sys.argv[2])))
heard.settimeout(30)
print("ready", flush=True)
while (data := heard.recv(9)) != b"end":
    print(data.decode())
"""
_SEND = "import socket,sys;socket.socket(2,2).sendto(b'heard',(sys.argv[1],int(sys.argv[2])))"


def _sent(hosts: Hosts, source: str, target: str, port: int) -> str:
    """What ``target`` heard of one datagram from ``source``. The test itself, which every host hears, says when that
    is all: how long an interpreter takes to start has no part in it."""
    where = (hosts.address(target), port)
    arguments = [where[0], str(port)]
    listener = subprocess.Popen(
        [*hosts.enter(target), sys.executable, "-c", _LISTEN, *arguments], stdout=subprocess.PIPE, text=True
    )
    with listener, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outside:
        assert listener.stdout is not None
        assert listener.stdout.readline() == "ready\n"
        # The switch loses it silently: the sender is told nothing.
        subprocess.run([*hosts.enter(source), sys.executable, "-c", _SEND, *arguments], check=True)
        outside.sendto(b"end", where)
        heard = listener.stdout.read().strip()
    assert listener.returncode == 0
    return heard


@pytest.mark.hosts
@pytest.mark.slow
def test_a_cut_loses_one_direction_and_healing_restores_it() -> None:
    with Hosts(["a", "b"], network=51) as hosts:
        assert _sent(hosts, "a", "b", 29_890) == "heard"
        hosts.cut("a", "b")
        hosts.lose("another", [("b", OUTSIDE)])
        assert _sent(hosts, "a", "b", 29_890) == ""
        assert hosts.dropped("a") == 1
        assert _sent(hosts, "b", "a", 29_890) == "heard"
        # Another process finds what this one did: nothing but the kernel knows it.
        later = Hosts(["a", "b"], network=51)
        assert later.faults() == {"main", "another"}
        later.heal("main")
        assert later.faults() == {"another"}
        assert _sent(hosts, "a", "b", 29_890) == "heard"
        assert hosts.dropped("a") == 0


@pytest.mark.hosts
@pytest.mark.slow
def test_what_is_missing_is_made_and_what_is_there_stays() -> None:
    hosts = Hosts(["a"], network=52, owner="one")
    try:
        hosts.ensure()
        assert hosts.present()
        more = Hosts(["a", "b"], network=52, owner="one", pods="240.52.0.0/16")
        assert not more.present()
        more.ensure()
        assert more.present()
        # A host that was not finished when its maker was killed: no port on the bridge.
        subprocess.run(["ip", "-n", "qd52-switch", "link", "set", "p2", "nomaster"], check=True)
        assert not more.present()
        more.ensure()
        assert _sent(more, "a", "b", 29_891) == "heard"
    finally:
        hosts.remove()
    assert not hosts.present()
    assert not hosts.faults()


@pytest.mark.hosts
@pytest.mark.slow
def test_a_network_somebody_lives_in_is_refused_and_a_deserted_one_taken() -> None:
    with Hosts(["a"], network=53, owner="one") as hosts, subprocess.Popen([*hosts.enter("a"), "sleep", "60"]) as tenant:
        other = Hosts(["a"], network=53, owner="two")
        while not other._inhabited():  # it has started, and not yet entered
            assert tenant.poll() is None
        with pytest.raises(ConfigError, match="in use by one"):
            other.ensure()
        tenant.kill()
        tenant.wait()
        assert hosts.mine()
        other.ensure()
        assert hosts._found_owner() == "two"
        assert not hosts.mine()
