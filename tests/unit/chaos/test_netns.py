"""Hosts of their own: addresses and filter texts as values, and two real hosts whose link is cut."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from chaos.netns import Hosts, filter_text


def test_addresses_are_of_the_range_for_tests_and_differ_between_networks() -> None:
    assert Hosts(["a", "b"], network=3).address("b") == "198.18.3.2"
    assert Hosts(["a", "b"], network=258).address("a") == "198.19.2.1"


def test_a_network_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="0 to 511"):
        Hosts(["a"], network=512)


def test_a_command_is_run_inside_its_hosts_namespace() -> None:
    assert Hosts(["a"], network=7).enter("a") == ["ip", "netns", "exec", "qd7-a"]


def test_without_a_fault_the_filter_drops_nothing() -> None:
    text = filter_text([], ["198.18.0.2"])
    assert "delete table ip quarterdeck" in text
    assert "drop" not in text


def test_the_filter_drops_what_goes_to_cut_addresses() -> None:
    text = filter_text(["198.18.0.2", "198.18.0.3"], ["198.18.0.2", "198.18.0.3"])
    assert "ip daddr { 198.18.0.2, 198.18.0.3 } counter drop" in text
    assert "random" not in text


def test_the_filter_loses_a_share_of_what_goes_to_the_others() -> None:
    text = filter_text([], ["198.18.0.2"], 30)
    assert "ip daddr { 198.18.0.2 } numgen random mod 100 < 30 counter drop" in text


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
        # A filter on the way out tells the sender "not permitted": that is the drop, seen from inside.
        subprocess.run(
            [*hosts.enter(source), sys.executable, "-c", _SEND, *arguments], stderr=subprocess.DEVNULL, check=False
        )
        outside.sendto(b"end", where)
        heard = listener.stdout.read().strip()
    assert listener.returncode == 0
    return heard


@pytest.mark.hosts
@pytest.mark.slow
def test_a_cut_loses_one_direction_and_healing_restores_it() -> None:
    with Hosts(["a", "b"], network=411) as hosts:
        assert _sent(hosts, "a", "b", 29_890) == "heard"
        hosts.cut("a", "b")
        assert _sent(hosts, "a", "b", 29_890) == ""
        assert hosts.dropped("a") >= 1
        assert _sent(hosts, "b", "a", 29_890) == "heard"
        hosts.heal()
        assert _sent(hosts, "a", "b", 29_890) == "heard"
        assert hosts.dropped("a") == 0
