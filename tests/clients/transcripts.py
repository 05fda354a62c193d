"""`make transcripts`: what etcdctl and Python clients of etcd print with a cluster of ours, into docs/transcripts.md.

Every sub-command of etcdctl 3.4 is run against three fresh replicas with TLS, as it is shown. What differs from run to
run for no reason (ids, times, ports, folders) is replaced by names; everything else is as it was printed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["PLAIN", "SECTIONS", "Names", "Section"]

_ROOT: Final = Path(__file__).resolve().parents[2]
_PAGE: Final = _ROOT / "docs" / "transcripts.md"
#: The ports shown, whatever they were.
_SHOWN_PORT_BASE: Final = 7400
_PKI: Final = ".quarterdeck/pki"
_COMMAND_LIMIT_S: Final = 180.0

#: A command of bash, and the variables to take from what it prints: name -> pattern with one group.
Step = str | tuple[str, dict[str, str]]


@dataclass(frozen=True, slots=True)
class Section:
    """Commands in order, and a few words on what to see."""

    title: str
    steps: Sequence[Step]
    words: str = ""


SECTIONS: Final = (
    Section(
        "Keys",
        [
            "etcdctl put greeting ahoy",
            ("etcdctl get greeting --write-out=fields", {"REVISION": r'"ModRevision" : (\d+)'}),
            "etcdctl put greeting 'good morning' --prev-kv",
            "etcdctl put greeting/en hello",
            "etcdctl get greeting",
            "etcdctl get --prefix greeting",
            "etcdctl get greeting --rev=$REVISION",
            "etcdctl get greeting --rev=$((REVISION + 99))",
            "etcdctl get '' --prefix --keys-only --consistency=s",
            """etcdctl txn <<'END'
value("greeting") = "good morning"

put greeting/de moin
get greeting

put greeting/de hallo

END""",
            "etcdctl del greeting/en --prev-kv",
            "timeout 2 etcdctl watch --prefix greeting --rev=$REVISION",
            "etcdctl compaction $((REVISION + 1))",
            "etcdctl compaction $((REVISION + 1))",
            "etcdctl get greeting --rev=$REVISION",
            "timeout 2 etcdctl watch greeting --rev=$REVISION",
        ],
        "A watch goes on until it is stopped, here after two seconds.",
    ),
    Section(
        "Leases",
        [
            ("etcdctl lease grant 600", {"LEASE": r"lease (\w+) granted"}),
            "etcdctl put session alive --lease=$LEASE",
            "etcdctl lease list",
            "etcdctl lease timetolive $LEASE --keys",
            "etcdctl lease keep-alive --once $LEASE",
            "etcdctl lease revoke $LEASE",
            "etcdctl get session",
            "etcdctl lease timetolive $LEASE",
            "etcdctl lease keep-alive --once $LEASE",
        ],
    ),
    Section(
        "Locks and elections",
        [
            "etcdctl lock mutex -- sh -c 'echo held: $ETCD_LOCK_KEY'",
            "timeout 2 etcdctl elect job first",
            "timeout 4 etcdctl elect job second > elected & sleep 1; timeout 2 etcdctl elect --listen job",
        ],
    ),
    Section(
        "The cluster",
        [
            "etcdctl endpoint health",
            "etcdctl endpoint status --write-out=table",
            "etcdctl endpoint hashkv",
            "etcdctl member list",
            (
                "etcdctl member add r4 --learner --peer-urls=https://127.0.0.1:7442",
                {"ADDED": r"Member +(\w+) added"},
            ),
            "etcdctl member list | grep unstarted",
            "etcdctl member promote $ADDED",
            "etcdctl member update $ADDED --peer-urls=https://127.0.0.1:7452",
            "etcdctl member remove $ADDED",
            "etcdctl move-leader $FOLLOWER",
            "etcdctl move-leader 99",
            "etcdctl alarm list",
            "etcdctl alarm disarm",
            "etcdctl defrag",
        ],
        "A learner that was never started cannot be promoted: it has nothing of the log. No alarm is raised, so none is"
        " listed or disarmed.",
    ),
    Section(
        "Users and roles",
        [
            "etcdctl role add app",
            "etcdctl role grant-permission app readwrite --prefix=true a/",
            "etcdctl role get app",
            "etcdctl role list",
            "etcdctl user add root:secret",
            "etcdctl user add alice:pw",
            "etcdctl user grant-role root root",
            "etcdctl user grant-role alice app",
            "etcdctl user get alice --detail",
            "etcdctl user list",
            "etcdctl auth enable",
            "etcdctl --user=alice:pw put a/x 1",
            "etcdctl --user=alice:pw put b/x 1",
            "etcdctl --user=alice:wrong get a/x",
            "echo new | etcdctl --user=root:secret user passwd alice --interactive=false",
            "etcdctl --user=alice:new get a/x",
            "etcdctl --user=root:secret role revoke-permission app --prefix=true a/",
            "etcdctl --user=alice:new get a/x",
            "etcdctl --user=root:secret user revoke-role alice app",
            "etcdctl --user=root:secret user delete alice",
            "etcdctl --user=root:secret role delete app",
            "etcdctl --user=root:secret auth disable",
        ],
        "Without `--user` the certificate speaks: that of `admin` acts as root.",
    ),
    Section(
        "Backups and mirrors",
        [
            "etcdctl snapshot save backup.db",
            "ETCDCTL_ENDPOINTS=https://127.0.0.1:7410 etcdctl snapshot save backup.db",
            "etcdctl snapshot status backup.db --write-out=table",
            "etcdctl snapshot restore backup.db --data-dir=restored && ls restored/member",
            "etcdctl put m/a 1",
            """timeout 3 etcdctl make-mirror --prefix=m/ --dest-prefix=copy/ https://127.0.0.1:7410 \\
    --dest-cacert=$ETCDCTL_CACERT --dest-cert=$ETCDCTL_CERT --dest-key=$ETCDCTL_KEY""",
            "etcdctl get --prefix copy/",
        ],
        "A snapshot is asked of one replica. The file is one of etcd's own: a real etcd starts on what it restores.",
    ),
    Section(
        "Checks",
        ["etcdctl check perf --load=s --auto-compact", "etcdctl check datascale --load=s"],
        "`check perf` takes a minute, and judges. `check datascale` fails with TLS ([why](etcd-api.md#etcdctl)); below,"
        " it is run once more without.",
    ),
    Section(
        "Without a server",
        [
            "etcdctl version",
            "etcdctl help | head -3",
            "for shell in bash fish powershell zsh; do etcdctl completion $shell | head -1; done",
            "etcdctl migrate --data-dir=.",
        ],
        "`migrate` reads the files of an etcd 2 that was stopped, of which there are none here.",
    ),
)

#: On a cluster without TLS.
PLAIN: Final = Section("Without TLS", ["etcdctl check datascale --load=s"])


_ID: Final = re.compile(r"\b[0-9a-f]{15,16}\b")
#: A progress bar, but for its end.
_UNDER_WAY: Final = re.compile(r"^ *(\d+) / (?!\1 ).*\n", re.MULTILINE)


class Names:
    """Names for what is another word in every run; the same word has the same name all along."""

    def __init__(self, port_base: int) -> None:
        self._port_base = port_base
        self._known: dict[str, str] = {}

    def call(self, word: str, name: str) -> None:
        """From now on ``word`` is shown as ``name``."""
        self._known[word] = name

    def real(self, command: str) -> str:
        """A command as it is shown, with the ports that are used."""
        return self._move(command, _SHOWN_PORT_BASE, self._port_base)

    def shown(self, text: str) -> str:
        """What was printed, as it is shown."""
        text = re.sub(r'^\{"level":"(warn|info)".*\n?', "", text, flags=re.MULTILINE)  # its log: times and targets
        text = self._move(text, self._port_base, _SHOWN_PORT_BASE)
        for word, name in self._known.items():
            text = text.replace(f" {word} |", f" {name:{len(word)}} |").replace(word, name)
        text = _ID.sub(self._new, text)
        text = re.sub(r'("(?:ClusterID|MemberID)" : )\d+', r"\1…", text)
        text = re.sub(r"took = [\d.]+[mµ]?s", "took = …", text)
        return _UNDER_WAY.sub("", text).strip("\n")

    def _new(self, found: re.Match[str]) -> str:
        name = f"ID-{1 + len(self._known)}"
        self.call(found.group(), name)
        return name

    def _move(self, text: str, before: int, after: int) -> str:
        def moved(found: re.Match[str]) -> str:
            port = str(int(found[2]) - before + after)
            return found[1] + port + (" " * (len(found[2]) - len(port)) if found[3] else "") + found[3]

        return re.sub(r"(127\.0\.0\.1:)(\d+)( \||)", moved, text)


@contextmanager
def _cluster(directory: Path, port_base: int, *, tls: bool) -> Iterator[None]:
    """Three replicas on loopback in a folder."""
    qd = [str(Path(sys.executable).with_name("qd"))]
    up = [*qd, "local", "up", "--replicas", "3", "--nodes", "0", "--port-base", str(port_base)]
    subprocess.run([*up, "--tls" if tls else "--no-tls"], cwd=directory, check=True, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        subprocess.run([*qd, "local", "down", "--destroy"], cwd=directory, check=True, stdout=subprocess.DEVNULL)


def _environment(port_base: int, *, tls: bool) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ETCD")}
    scheme = "https" if tls else "http"
    endpoints = ",".join(f"{scheme}://127.0.0.1:{port_base + port}" for port in (10, 20, 30))
    ours = {"ETCDCTL_API": "3", "ETCDCTL_ENDPOINTS": endpoints}
    if tls:
        ours |= {f"ETCDCTL_{name.upper()}": f"{_PKI}/{file}" for name, file in _FILES.items()}
    return kept | ours


_FILES: Final = {"cacert": "ca.crt", "cert": "admin.crt", "key": "admin.key"}


def _play(section: Section, names: Names, directory: Path, environment: dict[str, str]) -> Iterator[str]:
    """The section's commands and what each printed."""
    for step in section.steps:
        command, wanted = (step, {}) if isinstance(step, str) else step
        print(f"$ {command.splitlines()[0]}", flush=True)
        done = subprocess.run(
            ["bash", "-c", names.real(command)], cwd=directory, env=environment, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, timeout=_COMMAND_LIMIT_S,
        )  # fmt: skip
        for name, pattern in wanted.items():
            found = re.search(pattern, done.stdout.decode())
            if found is None:
                raise SystemExit(f"{command}: no {name} in: {done.stdout!r}")
            environment[name] = found.group(1)
            if _ID.fullmatch(found.group(1)):
                names.call(found.group(1), f"ID-{name}")
        yield f"$ {command}"
        printed = names.shown(done.stdout.decode().replace("\r", "\n"))
        if printed:
            yield printed


def _know_the_members(names: Names, directory: Path, environment: dict[str, str]) -> None:
    """Ids of members and cluster get names; FOLLOWER is the id of a member that does not lead."""

    def ask(*arguments: str) -> str:
        asked = ["etcdctl", *arguments]
        return subprocess.run(
            asked, cwd=directory, env=environment, check=True, text=True, stdout=subprocess.PIPE
        ).stdout

    for line in ask("member", "list").splitlines():
        member, _, name, *_ = line.split(", ")
        names.call(member, f"ID-{name}")
    followers = [line.split(", ")[1] for line in ask("endpoint", "status").splitlines() if ", false, false, " in line]
    environment["FOLLOWER"] = followers[0]
    cluster = re.search(r'"ClusterID" : (\d+)', ask("get", "x", "--write-out=fields"))
    assert cluster is not None
    names.call(f"{int(cluster.group(1)):x}", "ID-CLUSTER")


def _clients() -> str:
    """What `make clients` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.clients"], cwd=_ROOT, check=False, text=True, stdout=subprocess.PIPE
    )
    if done.returncode != 0:
        raise SystemExit(f"make clients fails: {done.stdout}")
    return "\n".join(line for line in done.stdout.splitlines() if not line.startswith("set-up"))


_HEAD: Final = """\
# Transcripts

What the clients of etcd print with a cluster of ours: every sub-command of etcdctl 3.4, and the own tests of three
Python clients. Written by `make transcripts` from three fresh replicas with TLS; nothing here was typed by hand. Ids
are replaced by names (`ID-r1`), ports by those of `make cluster`; the warnings of etcdctl's own log are left out.
What is not served, and etcdctl's quirks: [etcd-api.md](etcd-api.md).

```
export ETCDCTL_API=3 ETCDCTL_ENDPOINTS=https://127.0.0.1:7410,https://127.0.0.1:7420,https://127.0.0.1:7430
export ETCDCTL_CACERT=.quarterdeck/pki/ca.crt
export ETCDCTL_CERT=.quarterdeck/pki/admin.crt ETCDCTL_KEY=.quarterdeck/pki/admin.key
```
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.clients.transcripts", description=__doc__)
    parser.add_argument("--port-base", type=int, default=_SHOWN_PORT_BASE, help="of the cluster that is asked")
    parser.add_argument("--out", type=Path, default=_PAGE, help="the page to write")
    asked = parser.parse_args()
    if shutil.which("etcdctl") is None:
        raise SystemExit("there is no etcdctl here; on Debian install etcd-client")
    page = [_HEAD]
    names = Names(asked.port_base)

    def play(section: Section, directory: Path, environment: dict[str, str]) -> None:
        page.append(f"## {section.title}\n")
        if section.words:
            page.append(f"{section.words}\n")
        page.append("\n".join(["```", *_play(section, names, directory, environment), "```\n"]))

    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with _cluster(directory, asked.port_base, tls=True):
            environment = _environment(asked.port_base, tls=True)
            _know_the_members(names, directory, environment)
            for section in SECTIONS:
                play(section, directory, environment)
        with _cluster(directory, asked.port_base, tls=False):
            play(PLAIN, directory, _environment(asked.port_base, tls=False))
    page.append("## Python clients\n")
    page.append("`make clients`: each client's own tests, against us; what etcd 3.4 itself does not pass is said.\n")
    page.append(f"```\n$ make clients\n{_clients()}\n```")
    asked.out.write_text("\n".join(page) + "\n")
    print(f"written: {asked.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
