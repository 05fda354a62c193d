"""The clients' own test suites: where each is, how it is told about a server, and what of it cannot be run here.

Their tests come from the source distributions that the registry holds, checked by hash; none of it is in this project.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

__all__ = ["SUITES", "Suite", "prepare", "run"]

ROOT: Final = Path(__file__).resolve().parents[2]
LOCK: Final = ROOT / "requirements" / "clients.txt"
#: Far above what the slowest suite takes; a hang is a failure.
_SUITE_LIMIT_S: Final = 600


@dataclass(frozen=True)
class Suite:
    """One client's tests.

    Attributes:
        path: of the tests in its source distribution.
        environment: made of ``{client}`` and ``{http}``, the ports of gRPC and of the JSON gateway.
        left_out: test name -> why it is not run.
    """

    package: str
    path: str
    environment: Mapping[str, str]
    left_out: Mapping[str, str] = field(default_factory=dict)


_QUORUM: Final = "stops servers that it finds by name; chaos does that here"

SUITES: Final = (
    Suite(
        "etcd3",
        "tests",
        {
            "PYTHON_ETCD_HTTP_URL": "http://127.0.0.1:{client}",
            "TEST_ETCD_VERSION": "v3.4.23",
            # Its generated code is of 2019, which only protobuf's own Python implementation still reads.
            "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python",
        },
        {"test_get_key_serializable": _QUORUM, "test_get_prefix_serializable": _QUORUM},
    ),
    Suite("aetcd", "tests/integration", {"TEST_ETCD_HTTP_URL": "http://127.0.0.1:{client}"}),
    Suite(
        "etcd3gw",
        "etcd3gw/tests/test_etcd3gw.py",
        {"TOOZ_TEST_HTTP_URL": "http://127.0.0.1:{http}", "TOOZ_TEST_ETCD_PORT": "{http}"},
    ),
)


def prepare(work: Path) -> Path:
    """Install the clients into an environment of their own and unpack their sources; returns its Python."""
    python = work / "venv" / "bin" / "python"
    done = work / "done"
    if done.exists() and done.read_bytes() == LOCK.read_bytes():
        return python
    print("set-up: installing the Python clients of etcd and their tests", flush=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(work / "venv")], check=True)
    # The lock is whole. With --no-deps pip does not look past a pin at what is newest, as it does for an extra.
    subprocess.run([*pip, "install", "--no-deps", "--require-hashes", "-r", str(LOCK)], check=True)
    ours = work / "sources.txt"
    ours.write_text("\n".join(_locked(suite.package) for suite in SUITES))
    sources = ["--no-deps", "--no-binary", ":all:", "--require-hashes", "--dest", str(work), "-r", str(ours)]
    subprocess.run([*pip, "download", *sources], check=True)
    for suite in SUITES:
        with tarfile.open(_archive(work, suite)) as archive:
            archive.extractall(work / "sources", filter="data")
    done.write_bytes(LOCK.read_bytes())
    return python


def _locked(package: str) -> str:
    """The lines of the lock file for one package."""
    found = re.search(rf"^{package}==.*?(?=^\S)", LOCK.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None, f"{package} is not in {LOCK}"
    return found.group()


def _archive(work: Path, suite: Suite) -> Path:
    return next(work.glob(f"{suite.package}-*.tar.gz"))


def run(suite: Suite, python: Path, work: Path, *, client: int, http: int) -> dict[str, str]:
    """Run a suite against a server; test -> "passed", "skipped" or why it failed, in one line."""
    source = work / "sources" / _archive(work, suite).name.removesuffix(".tar.gz")
    report = work / f"{suite.package}.xml"
    report.unlink(missing_ok=True)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("ETCD", "PYTEST"))},
        **{name: value.format(client=client, http=http) for name, value in suite.environment.items()},
        "ETCDCTL_API": "3",
    }
    command = [str(python), "-m", "pytest", suite.path, "-q", "-o", "addopts=", "-p", "no:cacheprovider"]
    command += ["-W", "ignore", "--timeout=60", f"--junitxml={report}"]
    command += ["-k", " and ".join(f"not {name}" for name in suite.left_out)] if suite.left_out else []
    log = work / f"{suite.package}.log"
    with log.open("wb") as output:
        subprocess.run(
            command, cwd=source, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False,
            timeout=_SUITE_LIMIT_S,
        )  # fmt: skip
    if not report.exists():
        raise SystemExit(f"the tests of {suite.package} did not run; see {log}")
    results: dict[str, str] = {}
    for case in ET.parse(report).iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.')[2]}.{case.get('name')}"
        trouble = [child for child in case if child.tag in ("failure", "error", "skipped")]
        outcome = "passed" if not trouble else trouble[0].tag
        if outcome in ("failure", "error"):
            outcome = f"failed: {(trouble[0].get('message') or '').splitlines()[0][:120]}"
        if not results.get(name, "").startswith("failed"):
            results[name] = outcome
    return results
