"""The health and metrics port behaves as Kubernetes' and etcd's do."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest

from controlplane.base.errors import ConfigError
from controlplane.base.http import ObservabilityServer


@pytest.fixture
async def base_url() -> AsyncIterator[str]:
    async def broken() -> str | None:
        return "no leader"

    server = ObservabilityServer("127.0.0.1:0", {"disk": lambda: None, "leader": broken}, {"loop": lambda: None})
    await server.start()
    yield f"http://127.0.0.1:{server.port}"
    await server.stop()


async def get(url: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, await response.text()


async def test_livez_is_a_bare_ok(base_url: str) -> None:
    assert await get(base_url + "/livez") == (200, "ok")


async def test_readyz_fails_and_names_the_check_that_failed(base_url: str) -> None:
    status, text = await get(base_url + "/readyz")
    assert status == 503
    assert "[-]leader failed: no leader" in text
    assert "[+]disk ok" in text


async def test_one_check_can_be_asked_alone_or_left_out(base_url: str) -> None:
    assert await get(base_url + "/readyz/disk") == (200, "ok")
    assert (await get(base_url + "/readyz?exclude=leader"))[0] == 200
    status, text = await get(base_url + "/readyz/nonsense")
    assert status == 404
    assert "disk, leader" in text


async def test_health_answers_as_etcd_does(base_url: str) -> None:
    status, text = await get(base_url + "/health")
    assert status == 503
    assert '"health": "false"' in text


async def test_metrics_are_prometheus_text(base_url: str) -> None:
    status, text = await get(base_url + "/metrics")
    assert status == 200
    assert "process_start_time_seconds" in text


async def test_a_port_in_use_is_named(base_url: str) -> None:
    port = base_url.rsplit(":", 1)[1]
    with pytest.raises(ConfigError, match=f"127.0.0.1:{port}"):
        await ObservabilityServer(f"127.0.0.1:{port}", {}).start()


async def test_metrics_tell_the_build_and_how_each_check_went(base_url: str) -> None:
    await get(base_url + "/readyz")
    _, text = await get(base_url + "/metrics")
    assert 'kubernetes_build_info{git_version="v' in text
    assert 'kubernetes_healthcheck{name="disk",type="readyz"} 1.0' in text
    assert 'kubernetes_healthcheck{name="leader",type="readyz"} 0.0' in text
    assert 'kubernetes_healthchecks_total{name="leader",status="error",type="readyz"}' in text
