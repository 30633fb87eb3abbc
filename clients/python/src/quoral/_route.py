"""Where a request goes: to a home replica of its key, which need not pass it on. Decisions without any I/O.

The table is what the cluster said of itself at some time. It may be old, wrong, or not there at all: it changes how
far a request travels, never what it means.
"""

from __future__ import annotations

import functools
from typing import Dict, List, Sequence

from . import _blake3 as blake3
from .v1 import cluster_pb2

#: How old the table may be, in seconds, and one in which nodes are missing.
AGE_MOST = 30.0
AGE_INCOMPLETE = 2.0
#: After a refresh that failed.
AGE_FAILED = 2.0
#: Longest keyspace and key that are hashed in plain Python: more costs more than it saves.
PLAIN_MOST = 192


@functools.lru_cache(maxsize=8192)
def position(keyspace: str, key: bytes) -> int:
    """First 8 bytes, big endian, of blake3 over keyspace, a zero byte, and the partition key."""
    return int.from_bytes(blake3.digest(keyspace.encode() + b"\0" + key)[:8], "big")


def partition(position_: int, partitions: int) -> int:
    """The partition that a position is in: its top bits. -1 if `partitions` is no power of two."""
    if partitions < 1 or partitions & (partitions - 1):
        return -1
    return position_ >> (64 - (partitions.bit_length() - 1))


class Table:
    """Who owns what, and where they are."""

    def __init__(
        self,
        status: cluster_pb2.StatusResponse,
        layout: cluster_pb2.LayoutResponse,
        keyspaces: cluster_pb2.ListKeyspacesResponse,
    ) -> None:
        there = [node for node in status.nodes if node.state in ("alive", "suspect") and node.client_address]
        staying = [node for node in status.nodes if node.state != "left"]
        self.layout_version = layout.layout_version
        self.is_complete = len(there) == len(staying)
        self._addresses: Dict[str, str] = {node.node_id: node.client_address for node in there}
        self._owners: List[Sequence[str]] = [list(one.owners) for one in layout.partitions]
        self._n: Dict[str, int] = {info.name: info.n for info in keyspaces.keyspaces}

    @property
    def addresses(self) -> List[str]:
        return list(self._addresses.values())

    def homes(self, keyspace: str, key: bytes) -> List[str]:
        """Addresses of the home replicas that were not known to be down, in order of preference; none if unknown."""
        keyspace = keyspace or "default"
        n = self._n.get(keyspace)
        if n is None or not (blake3.IS_FAST or len(keyspace) + len(key) < PLAIN_MOST):
            return []
        at = partition(position(keyspace, key), len(self._owners))
        owners = self._owners[at][:n] if 0 <= at < len(self._owners) else []
        return [self._addresses[node] for node in owners if node in self._addresses]
