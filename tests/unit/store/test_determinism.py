"""Same log, same state: in one process, and in two with different hash seeds."""

from __future__ import annotations

import os
import subprocess
import sys
from hashlib import sha256
from random import Random

import pytest

from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.store.store import Store
from tests.unit.store.support import Driver, delete_op, put_op


def busy_store(seed: int, steps: int = 400) -> Driver:
    """A log made from a seed."""
    random = Random(seed)
    driver = Driver()
    for _ in range(steps):
        key = b"k%d" % random.randrange(30)
        match random.randrange(9):
            case 0:
                driver.grant(random.randrange(1, 6), 60)
            case 1:
                driver.revoke(random.randrange(1, 6))
            case 2:
                driver.delete(key, b"k2")
            case 3:
                driver.txn(e.TxnRequest(success=[put_op(b"x" + key), delete_op(b"k1", b"k12")]))
            case 4 if driver.store.revision > driver.store.compact_revision + 20:
                driver.compact(driver.store.revision - 10)
            case _:
                lease = random.randrange(1, 6)
                driver.put(key, b"%d" % random.randrange(99), lease if lease in driver.store.leases else 0)
    return driver


def fingerprint(driver: Driver) -> str:
    return f"{driver.store.revision} {driver.store.state_hash()} {sha256(driver.snapshot()).hexdigest()}"


def test_same_log_same_state() -> None:
    assert fingerprint(busy_store(1)) == fingerprint(busy_store(1))
    assert fingerprint(busy_store(1)) != fingerprint(busy_store(2))


def test_batching_changes_neither_the_keys_nor_the_hash() -> None:
    driver = busy_store(3)
    batched = Store()
    for first in range(0, len(driver.proposals), 50):
        batched.apply(first + 1, 1, driver.proposals[first : first + 50])
    everything = e.RangeRequest(key=b"k", range_end=b"\0")
    assert batched.range(everything) == driver.store.range(everything)
    assert batched.state_hash() == driver.store.state_hash()


@pytest.mark.slow
def test_state_does_not_depend_on_the_hash_seed() -> None:
    code = "from tests.unit.store.test_determinism import *; print(fingerprint(busy_store(7)))"
    shown = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for seed in ("1", "2")
    ]
    assert shown[0] == shown[1] == fingerprint(busy_store(7)) + "\n"
