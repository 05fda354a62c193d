"""Where the store is: what is accepted, and that secrets stay where they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.base.errors import ConfigError
from controlplane.external.config import PASSWORD_VARIABLE, StoreConfig, read_password


def test_several_members() -> None:
    config = StoreConfig.parse("etcd://a:2379,b:2380")
    assert config.endpoints == ("a:2379", "b:2380")
    assert config.credentials() is None


@pytest.mark.parametrize("address", ["a:2379", "http://a:2379", "etcd://", "etcd://a", "etcd://a:99999"])
def test_another_form_is_refused_by_name(address: str) -> None:
    with pytest.raises(ConfigError):
        StoreConfig.parse(address)


@pytest.mark.parametrize("address", ["etcd://root:hunter2@a:2379", "https://root:hunter2@a:2379"])
def test_a_password_in_the_address_is_refused_and_not_repeated(address: str) -> None:
    with pytest.raises(ConfigError) as refused:
        StoreConfig.parse(address)
    assert "hunter2" not in str(refused.value)


def test_the_password_is_not_shown() -> None:
    config = StoreConfig.parse("etcd://a:2379", user="root", password="hunter2")
    assert "hunter2" not in repr(config)


@pytest.mark.parametrize(
    "settings",
    [
        {"user": "root"},
        {"cert": Path("c")},
        {"cert": Path("c"), "key": Path("k")},
        {"lease_ttl_s": 0},
        {"lease_ttl_s": 61},
    ],
)
def test_settings_that_do_not_fit_together_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="--store-"):
        StoreConfig.parse("etcd://a:2379", **settings)  # type: ignore[arg-type]


def test_a_certificate_that_is_not_there_is_named(tmp_path: Path) -> None:
    config = StoreConfig.parse("etcd://a:2379", ca=tmp_path / "ca.pem")
    with pytest.raises(ConfigError, match=r"--store-ca .*ca\.pem"):
        config.credentials()


def test_the_password_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "password"
    path.write_text("hunter2\n")
    assert read_password(path) == "hunter2"
    monkeypatch.setenv(PASSWORD_VARIABLE, "other")
    assert read_password(None) == "other"
    with pytest.raises(ConfigError, match="--store-password-file"):
        read_password(tmp_path / "none")
