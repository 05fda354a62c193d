"""What a member says first on a link, for tests of links."""

from __future__ import annotations

from controlplane.pb.quarterdeck.internal.v1.raft_pb2 import Frame, Hello
from controlplane.transport.frames import PROTOCOL_VERSION

__all__ = ["hello"]


def hello(**changes: object) -> Frame:
    """Of r2 (member 2) of cluster 9 to member 1, but for the changes."""
    fields = {
        "protocol_version": PROTOCOL_VERSION,
        "cluster_id": 9,
        "member_id": 2,
        "to_member_id": 1,
        "member_name": "r2",
        **changes,
    }
    return Frame(hello=Hello(**fields))  # type: ignore[arg-type]
