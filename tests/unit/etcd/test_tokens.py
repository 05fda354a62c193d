"""Tokens: who they are accepted for, by whom, and for how long."""

from __future__ import annotations

import pytest

from controlplane.base.clock import ManualClock
from controlplane.base.errors import Code, StatusError
from controlplane.base.limits import AUTH_NAME_CHARS_MAX
from controlplane.etcd import tokens as tokens_module
from controlplane.etcd.tokens import TOKEN_TTL_S, Tokens
from controlplane.store.auth import Auth, User

ALICE = User("alice", "hash", 2)
ROOT = User("root", "hash", 3, ("root",))


class Signers:
    """Two replicas with one auth store, which is what replication makes of it."""

    def __init__(self, key: bytes = b"k" * 32) -> None:
        self.auth = Auth()
        self.clock = ManualClock()
        self.enable(key)
        self.one, self.other = Tokens(self.auth, self.clock), Tokens(self.auth, self.clock)

    def enable(self, key: bytes, *users: User) -> None:
        self.auth.load(True, 4, key, list(users) or [ALICE, ROOT], [])


def refused(tokens: Tokens, token: str) -> bool:
    try:
        tokens.user_of(token)
    except StatusError as error:
        return (error.code, error.message) == (Code.UNAUTHENTICATED, "etcdserver: invalid auth token")
    return False


def test_a_token_is_accepted_by_every_replica() -> None:
    signers = Signers()
    token = signers.one.issue(ALICE)
    assert signers.one.user_of(token) == signers.other.user_of(token) == "alice"


@pytest.mark.parametrize("name", ["a.b.c", "ä ö", "=", "\U0001f6a2" * AUTH_NAME_CHARS_MAX])
def test_any_name_fits_in_a_token(name: str) -> None:
    signers = Signers()
    user = User(name, "hash", 2)
    signers.enable(b"k", user)
    token = signers.one.issue(user)
    assert token.isascii()
    assert signers.other.user_of(token) == name


@pytest.mark.parametrize("token", ["", ".", "...", "a.b", "YWxpY2U.2.0.", "ü", "x" * 10_000, "YWxpY2U.2.0." + "0" * 64])
def test_what_we_did_not_sign_is_refused(token: str) -> None:
    assert refused(Signers().one, token)


def test_a_token_that_was_changed_in_any_place_is_refused() -> None:
    signers = Signers()
    token = signers.one.issue(ALICE)
    for at in range(len(token)):
        changed = token[:at] + ("0" if token[at] != "0" else "1") + token[at + 1 :]
        assert refused(signers.one, changed), at


def test_nothing_is_accepted_while_there_is_no_key() -> None:
    """An empty key must not be one that anybody could sign with."""
    signers = Signers(b"")
    assert refused(signers.one, signers.one.issue(ALICE))


def test_a_token_lives_five_minutes_from_its_last_use() -> None:
    signers = Signers()
    token = signers.one.issue(ALICE)
    for _ in range(3):
        signers.clock.advance(TOKEN_TTL_S - 1)
        assert signers.one.user_of(token) == "alice"
    assert refused(signers.other, token), "where it was never used it counts from when it was issued"
    signers.clock.advance(TOKEN_TTL_S)
    assert refused(signers.one, token)
    assert refused(signers.one, token), "and it does not come back"


def test_a_token_is_void_once_the_credentials_change() -> None:
    signers = Signers()
    token = signers.one.issue(ALICE)
    assert signers.one.user_of(token) == "alice"
    signers.enable(signers.auth.token_key, User("alice", "other", 9), ROOT)
    assert refused(signers.one, token)
    signers.enable(signers.auth.token_key, ROOT)
    assert refused(signers.one, token)


def test_a_token_is_void_once_authentication_is_enabled_anew() -> None:
    signers = Signers()
    token = signers.one.issue(ALICE)
    assert signers.one.user_of(token) == "alice"
    signers.enable(b"another key")
    assert refused(signers.one, token)


def test_what_is_remembered_is_bounded_and_what_is_forgotten_counts_from_its_issue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tokens_module, "_REMEMBERED_MAX", 2)
    signers = Signers()
    issued = []
    for _ in range(3):
        issued.append(signers.one.issue(ALICE))
        signers.clock.advance(1)
    signers.clock.advance(TOKEN_TTL_S - 10)
    for token in issued:
        assert signers.one.user_of(token) == "alice"
    signers.clock.advance(20)
    assert [refused(signers.one, token) for token in issued] == [True, False, False]
