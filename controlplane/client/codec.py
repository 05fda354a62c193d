"""Manifests for users of the client: the API server's own codec, under the client's name.

Agents, chaos and the command line import nothing deeper than the client; JSON and YAML mean the same on both ends.
"""

from __future__ import annotations

from controlplane.api.codec import DocumentError, dump_yaml, from_dict, load_json, load_manifests, to_dict

__all__ = ["DocumentError", "dump_yaml", "from_dict", "load_json", "load_manifests", "to_dict"]
