"""What an agent reports of its pods, written to their objects. Owns the merge and the uid check; keeps no state.

A report counts only for the very pod it names: an object of the same name with another uid is another pod. Everything
here may be repeated with nothing to do.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Final

from controlplane.api.calls import ResourceCalls
from controlplane.api.errors import ApiError, ConflictError, NotFoundError, UnavailableError
from controlplane.base.clock import Clock
from controlplane.base.errors import Code
from controlplane.pb.k8s import core_v1_pb2
from controlplane.pb.quarterdeck.v1 import api_pb2, node_pb2

__all__ = ["PodStatusWriter", "merged_status"]

log = logging.getLogger("quarterdeck.sessions")

#: Writes in flight for one batch. They meet in one log entry anyway; more would only crowd out other clients.
_PARALLEL: Final = 32
_RETRY_S: Final = 0.1


class PodStatusWriter:
    """Stores status reports."""

    def __init__(self, api: ResourceCalls, clock: Clock) -> None:
        self._api = api
        self._clock = clock

    async def store(self, node_name: str, reports: Iterable[node_pb2.PodStatusReport]) -> None:
        """Return once every report is stored, or does not count (pod gone, replaced, or never this node's).

        Waits out an API without a quorum; cancel to stop waiting.
        """
        slots = asyncio.Semaphore(_PARALLEL)

        async def one(report: node_pb2.PodStatusReport) -> None:
            async with slots:
                await self._store_one(node_name, report)

        async with asyncio.TaskGroup() as group:
            for report in reports:
                group.create_task(one(report))

    async def _store_one(self, node_name: str, report: node_pb2.PodStatusReport) -> None:
        while True:
            try:
                if report.terminated:
                    await self._remove(report)
                else:
                    await self._update(node_name, report)
                return
            except NotFoundError:
                return
            except ConflictError:
                continue  # written since we read it: read again
            except UnavailableError as error:
                log.info("status waits node=%s pod=%s/%s reason=%s", node_name, report.namespace, report.name, error)
                await self._clock.sleep(_RETRY_S)
            except ApiError as error:
                if error.code is not Code.INVALID_ARGUMENT:
                    raise
                # Sending it again would be refused again, and hold up the node's other pods.
                log.error("status refused node=%s pod=%s/%s reason=%s", node_name, report.namespace, report.name, error)
                return

    async def _read(self, report: node_pb2.PodStatusReport) -> core_v1_pb2.Pod | None:
        request = api_pb2.GetRequest(resource="pods", namespace=report.namespace, name=report.name)
        pod = (await self._api.get(request)).pod
        return pod if pod.metadata.uid == report.uid else None

    async def _remove(self, report: node_pb2.PodStatusReport) -> None:
        try:
            await self._api.delete(
                api_pb2.DeleteRequest(
                    resource="pods",
                    namespace=report.namespace,
                    name=report.name,
                    grace_period_seconds=0,
                    uid=report.uid,
                )
            )
        except ConflictError:
            if await self._read(report) is not None:
                raise

    async def _update(self, node_name: str, report: node_pb2.PodStatusReport) -> None:
        pod = await self._read(report)
        if pod is None or pod.spec.nodeName != node_name:
            return
        status = merged_status(pod.status, report.status)
        if status == pod.status:
            return
        wanted = core_v1_pb2.Pod(metadata=pod.metadata, spec=pod.spec, status=status)
        await self._api.update_status(api_pb2.UpdateRequest(object=api_pb2.Object(pod=wanted)))


def merged_status(stored: core_v1_pb2.PodStatus, reported: core_v1_pb2.PodStatus) -> core_v1_pb2.PodStatus:
    """The agent's report, with what it does not speak of kept: conditions of other types, QoS class, nomination."""
    status = core_v1_pb2.PodStatus()
    status.CopyFrom(reported)
    spoken_of = {condition.type for condition in reported.conditions}
    status.conditions.extend(c for c in stored.conditions if c.type not in spoken_of)
    if stored.HasField("qosClass"):
        status.qosClass = stored.qosClass
    if stored.HasField("nominatedNodeName"):
        status.nominatedNodeName = stored.nominatedNodeName
    if stored.HasField("startTime") and not status.HasField("startTime"):
        status.startTime.CopyFrom(stored.startTime)
    return status
