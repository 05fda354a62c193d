"""Certificates: what is issued, to whom, and for how long; subjects that belong to nobody."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from controlplane.base.clock import SystemClock
from controlplane.base.errors import ConfigError
from controlplane.base.identity import (
    ADMINS,
    Identity,
    IdentityError,
    IdentityKind,
    identity_of_subject,
    member,
    node,
    user,
)
from controlplane.base.pki import Authority, read_certificate

NOW_MS = SystemClock().wall_ms()
DAY_S = 86_400


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create("ca", now_ms=NOW_MS, days=30)


@pytest.mark.parametrize("who", [member("r1"), node("node-1"), user("alice", ("dev", "ops")), user("admin", (ADMINS,))])
def test_a_certificate_says_whom_it_is_for(authority: Authority, who: Identity) -> None:
    names = () if who.kind is IdentityKind.USER else ("127.0.0.1", "r1.example", "::1")
    found = read_certificate(authority.issue(who, names=names, now_ms=NOW_MS, days=7).certificate)
    assert found.identity == who
    assert sorted(found.names) == sorted(names)
    assert found.not_after_s == NOW_MS // 1000 + 7 * DAY_S
    assert found.not_before_s < NOW_MS / 1000


def test_no_certificate_outlives_its_authority(authority: Authority) -> None:
    found = read_certificate(authority.issue(user("alice"), now_ms=NOW_MS, days=365).certificate)
    assert found.not_after_s == NOW_MS // 1000 + 30 * DAY_S
    with pytest.raises(ConfigError, match="expired"):
        authority.issue(user("alice"), now_ms=NOW_MS + 31 * DAY_S * 1000)


def test_serials_and_keys_never_repeat(authority: Authority) -> None:
    pairs = [authority.issue(user("alice"), now_ms=NOW_MS) for _ in range(3)]
    assert len({read_certificate(pair.certificate).serial for pair in pairs}) == 3
    assert len({pair.key for pair in pairs}) == 3


def test_who_serves_needs_a_name(authority: Authority) -> None:
    with pytest.raises(ConfigError, match="at least one address"):
        authority.issue(member("r1"), now_ms=NOW_MS)


def test_an_authority_speaks_for_nobody(authority: Authority) -> None:
    with pytest.raises(IdentityError, match="authority"):
        _ = read_certificate(authority.pair.certificate).identity


def test_keys_are_their_owners_alone(authority: Authority, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        authority.issue(user("alice"), now_ms=NOW_MS).save(tmp_path / "users" / "a.crt", tmp_path / "users" / "a.key")
    finally:
        os.umask(before)
    assert (tmp_path / "users" / "a.key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "users").stat().st_mode & 0o777 == 0o700
    assert sorted(path.name for path in (tmp_path / "users").iterdir()) == ["a.crt", "a.key"]


def test_an_authority_must_fit_together(authority: Authority, tmp_path: Path) -> None:
    other = Authority.create("other", now_ms=NOW_MS)
    ca, key = tmp_path / "ca.crt", tmp_path / "ca.key"
    authority.pair.save(ca, key)
    assert Authority.load(ca, key).issued(authority.issue(user("a"), now_ms=NOW_MS).certificate)
    assert not authority.issued(other.issue(user("a"), now_ms=NOW_MS).certificate)
    key.write_bytes(other.pair.key)
    with pytest.raises(ConfigError, match="not that of its certificate"):
        Authority.load(ca, key)
    with pytest.raises(ConfigError, match=r"cannot read .*missing"):
        Authority.load(tmp_path / "missing", key)


@pytest.mark.parametrize(
    ("common_name", "organizations"),
    [
        ("system:member:r1", ()),
        ("system:member:r1", ("system:nodes",)),
        ("system:member:r1", ("system:members", "system:masters")),
        ("system:node:node-1", ("system:members",)),
        ("system:node:", ("system:nodes",)),
        ("alice", ("system:members",)),
        ("alice", ("system:nodes", "dev")),
        ("system:anything", ()),
        ("", ()),
        ("../alice", ()),
        ("ali ce", ()),
        ("alice\x00", ()),
    ],
)
def test_a_subject_that_mixes_kinds_is_nobody(common_name: str, organizations: tuple[str, ...]) -> None:
    with pytest.raises(IdentityError):
        identity_of_subject(common_name, organizations)


def test_a_user_cannot_be_given_the_clusters_own_groups() -> None:
    for group in ("system:members", "system:nodes", "system:other"):
        with pytest.raises(ConfigError, match="system:masters"):
            user("alice", (group,))
    with pytest.raises(ConfigError, match="the cluster's own"):
        user("system:member:r1")


def test_names_end_where_a_certificate_does() -> None:
    node("n" * 52)
    with pytest.raises(ConfigError, match="at most 52"):
        node("n" * 53)
