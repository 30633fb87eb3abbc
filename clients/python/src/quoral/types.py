"""What goes in and comes out: plain values, without anything of gRPC."""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Literal, Optional, Tuple, Union

from .errors import Conflict

#: Keys and values; text is sent as UTF-8. What comes back is always bytes.
Text = Union[str, bytes]
#: How many replicas must answer: a number, or a share of the keyspace's n.
Level = Union[int, Literal["one", "quorum", "all"]]
#: 16 bytes that name a write; `auto` draws them, None sends none.
RequestId = Union[bytes, None, Literal["auto"]]


@dataclass(frozen=True)
class Sibling:
    """One of the concurrent values of a key."""

    value: bytes
    #: Hybrid logical clock: milliseconds since 1970 << 16 | counter.
    stamp: int
    #: Milliseconds since 1970 from which on it is gone; 0 means never.
    expires_at_ms: int = 0


@dataclass(frozen=True)
class Got:
    """What a get found."""

    found: bool
    siblings: Tuple[Sibling, ...]
    #: Covers all of them, and deletions: pass it with the write that replaces them.
    context: bytes
    #: Replicas asked for, and heard.
    r: int
    replies: int
    #: Whether fallbacks are among them.
    sloppy: bool

    @property
    def values(self) -> List[bytes]:
        return [sibling.value for sibling in self.siblings]

    @property
    def value(self) -> Optional[bytes]:
        """The one value, or None if there is none. Raises `Conflict` if there are several."""
        if len(self.siblings) > 1:
            raise Conflict(self.values, self.context)
        return self.siblings[0].value if self.siblings else None


@dataclass(frozen=True)
class Written:
    """What a put or delete did."""

    #: Covers this write and what it replaced.
    context: bytes
    #: Acknowledgements asked for, and received when the answer was given.
    w: int
    acks: int
    #: Whether fallbacks counted.
    sloppy: bool
    stamp: int


@dataclass(frozen=True)
class Entry:
    """One key of a scan."""

    key: bytes
    sort: bytes
    siblings: Tuple[Sibling, ...]
    context: bytes

    @property
    def value(self) -> bytes:
        """The one value. Raises `Conflict` if there are several."""
        if len(self.siblings) != 1:
            raise Conflict([sibling.value for sibling in self.siblings], self.context)
        return self.siblings[0].value


@dataclass(frozen=True)
class Keyspace:
    """A set of keys with one policy."""

    name: str
    #: `lww` or `siblings`.
    conflicts: str
    n: int
    r: int
    w: int
    sloppy: bool
    #: Seconds; None means for ever.
    ttl: Optional[float]


@dataclass(frozen=True)
class Put:
    """A put of a batch. Without a keyspace of its own it has the batch's."""

    key: Text
    value: Text
    keyspace: Optional[str] = None
    sort: Text = b""
    context: Optional[bytes] = None
    w: Optional[Level] = None
    #: Seconds that the value lives; None means what the keyspace says.
    ttl: Optional[float] = None
    #: Whether fallbacks may stand in; None means what the keyspace says.
    sloppy: Optional[bool] = None
    request_id: RequestId = "auto"


@dataclass(frozen=True)
class Delete:
    """A delete of a batch."""

    key: Text
    keyspace: Optional[str] = None
    sort: Text = b""
    context: Optional[bytes] = None
    w: Optional[Level] = None
    sloppy: Optional[bool] = None
    request_id: RequestId = "auto"


@dataclass(frozen=True)
class Get:
    """A get of a batch."""

    key: Text
    keyspace: Optional[str] = None
    sort: Text = b""
    r: Optional[Level] = None
    sloppy: Optional[bool] = None


Item = Union[Put, Delete, Get]
