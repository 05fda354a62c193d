"""What all tests share: the ``needs`` marker, for tests that use a program of the machine.

``@pytest.mark.needs("etcdctl", "etcd-client")`` skips the test where the program is missing, and says which Debian
package has it. ``@pytest.mark.hosts`` is the same for tests that need network namespaces. In CI (the
environment variable ``CI`` is set) nothing is skipped: a missing program is a failure.
"""

from __future__ import annotations

import os
import shutil

import pytest

from controlplane.local.hosts import missing

#: Where programs stand that are not on an ordinary user's PATH.
_MORE_PATHS = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def find_program(name: str) -> str | None:
    """The full path of a program, or None."""
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(_MORE_PATHS))


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        program, package = marker.args
        if find_program(program) is None:
            not_run(f"the program {program!r} is not installed (apt-get install {package})")
    if item.get_closest_marker("hosts") is not None and (why := missing()) is not None:
        not_run(why)


def not_run(why: str) -> None:
    """Skip this test, saying why; in CI fail it."""
    reason = f"NOT RUN: {why}"
    if os.environ.get("CI"):
        pytest.fail(f"{reason}; CI skips nothing", pytrace=False)
    pytest.skip(reason)
