"""etcdserverpb.Cluster: members and their URLs."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.base.errors import Code, StatusError
from controlplane.etcd.cluster_service import ClusterService, peer_address
from controlplane.pb.etcd import rpc_pb2 as e
from tests.unit.etcd.fakes import FakeContext, Replica

PLAIN: Any = FakeContext()
BAD = (Code.INVALID_ARGUMENT, "etcdserver: given member URLs are invalid")


def why_not(*urls: str, tls: bool = False) -> tuple[Code, str]:
    with pytest.raises(StatusError) as caught:
        peer_address(urls, tls=tls)
    return caught.value.code, caught.value.message


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:2380", "http://", "http://host", "http://host:0", "http://host:99999", "http://h:1/path",
     "ftp://h:1", "http://user@h:1", "http://:2380"],
)  # fmt: skip
def test_a_url_no_peer_can_be_reached_at_is_refused_in_etcds_words(url: str) -> None:
    assert why_not(url) == BAD


def test_a_peer_url_is_one_url_of_the_clusters_scheme() -> None:
    assert peer_address(["http://10.0.0.4:2380"], tls=False) == "10.0.0.4:2380"
    assert peer_address(["https://db-4.example:2380"], tls=True) == "db-4.example:2380"
    assert peer_address(["http://[::1]:2380"], tls=False) == "[::1]:2380"
    assert why_not() == BAD
    assert "speak https" in why_not("http://10.0.0.4:2380", tls=True)[1]
    assert "speak http" in why_not("https://10.0.0.4:2380")[1]
    assert "one peer URL" in why_not("http://a:1", "http://b:1")[1]


async def test_a_member_comes_as_a_learner_is_promoted_moves_and_goes() -> None:
    replica = Replica()
    cluster = ClusterService(replica.kv, replica.raft, replica.authorizer)
    request = e.MemberAddRequest(peerURLs=["http://10.0.0.4:2380"], isLearner=True)
    added = await cluster.MemberAdd(request, PLAIN)
    assert added.member.isLearner
    assert list(added.member.peerURLs) == ["http://10.0.0.4:2380"]
    assert (added.member.name, list(added.member.clientURLs)) == ("", [])
    assert [m.ID for m in added.members] == [1, added.member.ID]
    with pytest.raises(StatusError, match="Peer URLs already exists"):
        await cluster.MemberAdd(request, PLAIN)
    member_id = added.member.ID
    promoted = await cluster.MemberPromote(e.MemberPromoteRequest(ID=member_id), PLAIN)
    assert [m.isLearner for m in promoted.members] == [False, False]
    update = e.MemberUpdateRequest(ID=member_id, peerURLs=["http://10.0.0.5:2380"])
    assert (await cluster.MemberUpdate(update, PLAIN)).members[1].peerURLs == ["http://10.0.0.5:2380"]
    removed = await cluster.MemberRemove(e.MemberRemoveRequest(ID=member_id), PLAIN)
    assert [m.ID for m in removed.members] == [1]
    with pytest.raises(StatusError, match="member not found"):
        await cluster.MemberRemove(e.MemberRemoveRequest(ID=member_id), PLAIN)


async def test_a_linearizable_list_asks_a_quorum_and_a_plain_one_does_not() -> None:
    replica = Replica()
    cluster = ClusterService(replica.kv, replica.raft, replica.authorizer, tls=True)
    members = (await cluster.MemberList(e.MemberListRequest(), PLAIN)).members
    assert members[0].peerURLs[0].startswith("https://")
    assert members[0].clientURLs[0].startswith("https://")
    assert replica.raft.barriers == 0
    await cluster.MemberList(e.MemberListRequest(linearizable=True), PLAIN)
    assert replica.raft.barriers == 1
