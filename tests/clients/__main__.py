"""`make clients`: the Python clients of etcd run their own tests against a 3-replica cluster of ours.

What must pass is what passes against a real 3-member etcd: `tests/clients/etcd.json`, recorded by `--record`, which
runs the same suites there. A test that etcd fails as well is shown and does not count.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.clients.suites import ROOT, SUITES, prepare, run

_RECORD: Final = Path(__file__).with_name("etcd.json")
#: Some tests of the clients speak to the default port of etcd, whatever they are told.
_CLIENT_PORT: Final = 2379
_WORK: Final = ROOT / ".venv" / "clients"


@contextmanager
def our_cluster(directory: Path) -> Iterator[tuple[int, int]]:
    """Three replicas on loopback, the first one's client port being etcd's default; its client and HTTP ports."""
    qd = [str(Path(sys.executable).with_name("qd"))]
    up = [*qd, "local", "up", "--replicas", "3", "--nodes", "0", "--port-base", str(_CLIENT_PORT - 10), "--no-tls"]
    subprocess.run(up, cwd=directory, check=True, stdout=subprocess.DEVNULL)
    try:
        yield _CLIENT_PORT, _CLIENT_PORT + 1
    finally:
        down = [*qd, "local", "down", "--destroy"]
        subprocess.run(down, cwd=directory, check=True, stdout=subprocess.DEVNULL)


@contextmanager
def real_etcd(directory: Path) -> Iterator[tuple[int, int]]:
    """Three members of etcd on loopback; client and HTTP port of the first are one."""
    names = ("m1", "m2", "m3")
    cluster = ",".join(f"{name}=http://127.0.0.1:{_CLIENT_PORT + 1 + 10 * i}" for i, name in enumerate(names))
    processes = []
    try:
        for i, name in enumerate(names):
            client = f"http://127.0.0.1:{_CLIENT_PORT + 10 * i}"
            peer = f"http://127.0.0.1:{_CLIENT_PORT + 1 + 10 * i}"
            command = ["etcd", f"--name={name}", f"--data-dir={directory / name}", f"--initial-cluster={cluster}"]
            command += [f"--listen-client-urls={client}", f"--advertise-client-urls={client}"]
            command += [f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", "--log-level=error"]
            processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        time.sleep(3.0)
        yield _CLIENT_PORT, _CLIENT_PORT
    finally:
        for process in processes:
            process.kill()
            process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.clients", description=__doc__)
    parser.add_argument("--record", action="store_true", help="run against a real etcd and record what passes there")
    parser.add_argument("--only", metavar="PACKAGE", help="one client's tests")
    asked = parser.parse_args()
    suites = [suite for suite in SUITES if asked.only in (None, suite.package)]
    _WORK.mkdir(parents=True, exist_ok=True)
    python = prepare(_WORK)
    recorded: dict[str, list[str]] = json.loads(_RECORD.read_text()) if _RECORD.exists() else {}
    behind = 0
    for suite in suites:
        # A fresh cluster each: the suites leave users, alarms and members behind when they fail.
        with tempfile.TemporaryDirectory() as directory:
            start = real_etcd if asked.record else our_cluster
            with start(Path(directory)) as (client, http):
                results = run(suite, python, _WORK, client=client, http=http)
        passed = sorted(name for name, outcome in results.items() if outcome == "passed")
        if asked.record:
            recorded[suite.package] = passed
        wanted = recorded.get(suite.package, [])
        missing = [name for name in wanted if results.get(name) != "passed"]
        behind += len(missing)
        for name in sorted(results):
            if results[name] != "passed":
                kind = "FAIL" if name in missing else "also on etcd"
                print(f"  {kind}  {suite.package} {name}: {results[name]}")
        for name, why in suite.left_out.items():
            print(f"  left out  {suite.package} {name}: {why}")
        print(f"{suite.package}: {len(passed)} passed of {len(results)}; etcd 3.4 passes {len(wanted)}", flush=True)
    if asked.record:
        _RECORD.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")
    print(f"{'FAIL' if behind else 'PASS'}: {behind} tests pass on etcd and fail here")
    return 1 if behind else 0


if __name__ == "__main__":
    sys.exit(main())
