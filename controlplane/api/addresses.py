"""Service addresses: one per service from the service range, never two services on one.

Owns the keys ``/quarterdeck/ips/<address>``: one per address in use, written and deleted in the transactions that
create, change and delete services, so that two replicas cannot give the same. Holds no state.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from typing import Final

from controlplane.api.errors import ApiError
from controlplane.api.faults import Faults
from controlplane.api.objects import delete_op, kv_errors, put_op
from controlplane.api.registry import invalid, kind_of
from controlplane.api.storage import prefix_end
from controlplane.base.errors import Code, ConfigError
from controlplane.base.rand import Rand
from controlplane.pb.etcd import rpc_pb2 as etcd
from controlplane.pb.k8s.core_v1_pb2 import Service
from controlplane.store.kv import KVStore

__all__ = ["DEFAULT_SERVICE_CIDR", "AddressPlan", "ServiceAddresses"]

DEFAULT_SERVICE_CIDR: Final = "127.96.0.0/16"
_PREFIX: Final = b"/quarterdeck/ips/"
_HEADLESS: Final = "None"


class AddressPlan:
    """What a service's write does to addresses: keys that must be free, and operations for its transaction."""

    def __init__(self) -> None:
        self.compare: dict[bytes, int] = {}
        self.ops: list[etcd.RequestOp] = []
        self._explicit: dict[bytes, Service] = {}

    def acquire(self, address: str, service: Service, *, explicit: bool) -> None:
        """Take an address that must be free; ``explicit`` when the service asks for this very one."""
        key = _PREFIX + address.encode()
        owner = f"{service.metadata.namespace}/{service.metadata.name}"
        self.compare[key] = 0
        if explicit:
            self._explicit[key] = service
        self.ops.append(put_op(key, owner.encode()))

    def release(self, address: str) -> None:
        """Give an address back."""
        self.ops.append(delete_op(_PREFIX + address.encode()))

    def refuse_taken(self, found: Mapping[bytes, int]) -> None:
        """Raise InvalidError if an address that was asked for belongs to another service (by mod revisions)."""
        for key, service in self._explicit.items():
            if found.get(key):
                faults = Faults()
                faults.invalid("spec.clusterIP", service.spec.clusterIP, "the provided IP is already allocated")
                raise invalid(kind_of(service), service.metadata.name, faults)


class ServiceAddresses:
    """Plans addresses out of a range (an IPv4 network).

    Raises:
        ConfigError: the range is not an IPv4 network with at least two hosts.
    """

    def __init__(self, kv: KVStore, rand: Rand, cidr: str = DEFAULT_SERVICE_CIDR) -> None:
        try:
            self._network = ipaddress.IPv4Network(cidr)
        except ValueError as error:
            raise ConfigError(
                f"service_cidr: {cidr!r} is not an IPv4 network such as {DEFAULT_SERVICE_CIDR}"
            ) from error
        if self._network.num_addresses < 4:
            raise ConfigError(f"service_cidr: {cidr!r} has no room: at least a /30 is needed")
        self._kv = kv
        self._rand = rand

    async def plan(self, new: Service | None, old: Service | None) -> AddressPlan:
        """The addresses to take and give back when ``old`` becomes ``new``; fills in the address of ``new``.

        Raises:
            InvalidError: an address asked for is outside the range.
            ApiError: the range is full (RESOURCE_EXHAUSTED).
        """
        plan = AddressPlan()
        had = _address(old)
        if new is None:
            if had:
                plan.release(had)
            return plan
        spec = new.spec
        if spec.type == "ExternalName":
            spec.ClearField("clusterIP")
            del spec.clusterIPs[:]
        wanted = _address(new)
        if wanted and wanted != had:
            self._check(new, wanted)
            plan.acquire(wanted, new, explicit=True)
        elif not spec.clusterIP and spec.type != "ExternalName":
            wanted = spec.clusterIP = await self._free()
            plan.acquire(wanted, new, explicit=False)
        if had and had != wanted:
            plan.release(had)
        del spec.clusterIPs[:]
        if spec.clusterIP:
            spec.clusterIPs.append(spec.clusterIP)
        return plan

    def _check(self, service: Service, address: str) -> None:
        inside = ipaddress.IPv4Address(address) in self._network
        if not inside:
            faults = Faults()
            faults.invalid(
                "spec.clusterIP", address, f"the provided IP is not in the service range, which is {self._network}"
            )
            raise invalid(kind_of(service), service.metadata.name, faults)

    async def _free(self) -> str:
        request = etcd.RangeRequest(key=_PREFIX, range_end=prefix_end(_PREFIX), keys_only=True, serializable=True)
        with kv_errors():
            response = await self._kv.range(request)
        used = {kv.key[len(_PREFIX) :] for kv in response.kvs}
        for address in self._candidates():
            if address.encode() not in used:
                return address
        raise ApiError(
            Code.RESOURCE_EXHAUSTED,
            f"failed to allocate a service address: the range {self._network} is full ({len(used)} in use)",
            reason="InternalError",
        )

    def _candidates(self) -> Iterator[str]:
        # Every host address once, from a random start: a freed address is not given again at once.
        count = self._network.num_addresses - 2
        start = self._rand.randint(0, count - 1)
        for offset in range(count):
            yield str(self._network.network_address + 1 + (start + offset) % count)


def _address(service: Service | None) -> str:
    address = service.spec.clusterIP if service is not None else ""
    return "" if address == _HEADLESS else address
