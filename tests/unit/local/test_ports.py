"""Which ports are free."""

from __future__ import annotations

import socket

from controlplane.local.ports import free_port, is_free


def test_a_port_somebody_listens_on_is_not_free_and_one_given_out_is() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert not is_free(address)
    assert is_free(address)
    assert is_free(f"127.0.0.1:{free_port()}")
