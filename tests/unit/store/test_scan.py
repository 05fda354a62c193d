"""A long range in steps shows one revision, whatever is written, compacted or deleted between two steps."""

from __future__ import annotations

import pytest

from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import Command
from controlplane.store.scan import Scan
from controlplane.store.store import Store
from tests.unit.store.support import Driver

KEYS = 1_200
ALL = e.RangeRequest(key=b"k/", range_end=b"k0")


@pytest.fixture(scope="module")
def filled() -> Store:
    driver = Driver()
    for start in range(0, KEYS, 100):
        puts = [
            e.RequestOp(request_put=e.PutRequest(key=b"k/%05d" % n, value=b"v%d" % n))
            for n in range(start, start + 100)
        ]
        driver.txn(e.TxnRequest(success=puts))
    driver.put(b"other")
    return driver.store


def read(scan: Scan, keys_per_step: int = 100) -> e.RangeResponse:
    response = e.RangeResponse(header=e.ResponseHeader(revision=scan.revision))
    while (fields := scan.step(keys_per_step)) is not None:
        response.MergeFromString(fields)
    response.MergeFromString(scan.end())
    scan.close()
    return response


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"limit": 1_100},
        {"limit": KEYS},
        {"limit": KEYS + 1},
        {"keys_only": True},
        {"sort_order": e.RangeRequest.ASCEND},
        {"range_end": b"\0"},
        {"key": b"k/00050"},
    ],
    ids=str,
)
def test_it_answers_as_a_range_at_once_does(filled: Store, changes: dict[str, object]) -> None:
    request = e.RangeRequest()
    request.CopyFrom(ALL)
    request.MergeFrom(e.RangeRequest(**changes))  # type: ignore[arg-type]
    scan = filled.scan(request)
    assert scan is not None
    assert read(scan) == filled.range(request)


@pytest.mark.parametrize(
    "changes",
    [
        {"limit": 500},
        {"count_only": True},
        {"sort_order": e.RangeRequest.DESCEND},
        {"sort_target": e.RangeRequest.MOD},
        {"min_mod_revision": 3},
        {"revision": 5},
        {"range_end": b"k/00900"},
    ],
    ids=str,
)
def test_what_is_short_or_needs_all_keys_first_is_not_read_in_steps(filled: Store, changes: dict[str, object]) -> None:
    request = e.RangeRequest()
    request.CopyFrom(ALL)
    request.MergeFrom(e.RangeRequest(**changes))  # type: ignore[arg-type]
    assert filled.scan(request) is None


def test_writes_deletes_and_compaction_between_two_steps_do_not_show() -> None:
    driver = Driver()
    for n in range(KEYS):
        driver.put(b"k/%05d" % n, b"old")
    before = driver.store.range(ALL)
    scan = driver.store.scan(ALL)
    assert scan is not None
    response = e.RangeResponse(header=e.ResponseHeader(revision=scan.revision))
    step = 0
    while (fields := scan.step(100)) is not None:
        response.MergeFromString(fields)
        driver.put(b"k/%05d" % (KEYS - 1 - step), b"new")
        driver.put(b"k/%05d+" % (50 * step), b"new")
        driver.delete(b"k/%05d" % (KEYS - 20 - step))
        driver.run(Command(compact=e.CompactionRequest(revision=driver.store.revision)))
        driver.store.sweep(1_000_000)
        step += 1
    response.MergeFromString(scan.end())
    scan.close()
    assert response == before
