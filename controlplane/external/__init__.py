"""The control plane on an etcd cluster of its own standing: what Raft and the replicated store give otherwise.

Owns the connection to that cluster (:mod:`connection`), the :class:`~controlplane.store.kv.KVStore` on it (:mod:`kv`,
:mod:`watch`, :mod:`once`), leadership held by a lease (:mod:`seat`, :mod:`election`), and the way control-plane
processes find and call one another (:mod:`roster`, :mod:`peers`). Must not know resources, controllers or nodes.
"""
