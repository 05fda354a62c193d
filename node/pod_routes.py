"""Pod addresses that other hosts reach: the node's range made local to this host, in the kernel's routing table.

Every host of one network segment then finds every pod, as the kernel answers for each address of the range (ARP), and
a process binds any of them without its being set up singly. This is what 127.x is on every Linux by itself; it is for
ranges that are not loopback. Needs root (CAP_NET_ADMIN) and the program ``ip``.
"""

from __future__ import annotations

import subprocess

from controlplane.base.errors import ConfigError

__all__ = ["make_local"]

_TIMEOUT_S = 5.0


def make_local(cidr: str) -> None:
    """Every address of the range is this host's from now on. May be repeated.

    Raises:
        ConfigError: the machine refused; says why.
    """
    command = ["ip", "route", "replace", "local", cidr, "dev", "lo"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"--pod-routes: {' '.join(command)}: {error}; it needs iproute2") from error
    if done.returncode != 0:
        raise ConfigError(f"--pod-routes: {' '.join(command)}: {done.stderr.strip()}; it needs root")
