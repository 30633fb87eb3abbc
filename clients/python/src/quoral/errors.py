"""What can go wrong. Every error says whether the request changed anything.

`applied` is the whole request's answer, over all of its attempts: once one attempt may have been applied, a later
one that surely was not makes it no surer. So `MAYBE` always comes as `Unknown`, whatever the last node said.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Optional, Sequence, Tuple


class Applied(enum.Enum):
    """Whether a failed request changed anything."""

    #: Surely not: it can be sent again.
    NO = 1
    #: It may have been, now or later.
    MAYBE = 2


@dataclass(frozen=True)
class Details:
    """What an error says besides its words: the message `quoral.v1.Failure`."""

    #: Answers needed, and answers received.
    required: int = 0
    received: int = 0
    #: Replicas that looked reachable when the request began.
    alive: int = 0
    #: Layout version that the node used; 0 if none.
    layout_version: int = 0
    #: Ids of the nodes that were asked and did not answer.
    silent: Tuple[str, ...] = ()


class QuoralError(Exception):
    """A request failed. Raised as itself where no class below fits: a damaged disk, a call the server lacks."""

    def __init__(
        self, message: str, *, applied: Applied = Applied.NO, code: str = "", details: Details = Details()
    ) -> None:
        super().__init__(message)
        self.message = message
        self.applied = applied
        #: gRPC's name of the last attempt's error, such as `UNAVAILABLE`; empty if no node was asked.
        self.code = code
        self.required = details.required
        self.received = details.received
        self.alive = details.alive
        self.layout_version = details.layout_version
        self.silent: Sequence[str] = details.silent


class Unavailable(QuoralError):
    """Too few nodes could be reached in time. Nothing was applied."""


class Unknown(QuoralError):
    """The outcome is not known: it may have been applied, now or later."""


class Overloaded(QuoralError):
    """The nodes refuse work for now. Nothing was applied."""

    def __init__(
        self,
        message: str,
        *,
        applied: Applied = Applied.NO,
        code: str = "",
        details: Details = Details(),
        retry_after: Optional[float] = None,
    ) -> None:
        super().__init__(message, applied=applied, code=code, details=details)
        #: Seconds to wait before the next attempt, if the node said so.
        self.retry_after = retry_after


class InvalidArgument(QuoralError):
    """A field breaks a rule or a limit; the message names it."""


class NotFound(QuoralError):
    """There is no such keyspace. (A key that is not there is no error: `Got.found` is false.)"""

    def __init__(
        self,
        message: str,
        *,
        applied: Applied = Applied.NO,
        code: str = "",
        details: Details = Details(),
        keyspace: str = "",
    ) -> None:
        super().__init__(message, applied=applied, code=code, details=details)
        self.keyspace = keyspace


class AlreadyExists(QuoralError):
    """A keyspace of this name is there."""


class Conflict(QuoralError):
    """One value was asked for and several are there: resolve them, or use `update`."""

    def __init__(self, values: Sequence[bytes], context: bytes) -> None:
        super().__init__(f"{len(values)} concurrent values where one was asked for")
        self.values = values
        self.context = context
