"""When to send again, where, and how long to wait: decisions without any I/O.

Time is a number of seconds that the caller passes, chance a number from 0 to 1. Both clients ask the same code.

1. The deadline holds: no attempt lasts beyond it, and no wait ends behind it.
2. What may have been applied is sent again only if that is safe: a read, or a write with a request id.
3. A surely refused request is sent again if another moment or node can help: unreachable, overloaded, too slow.
4. An overloaded node's delay is waited for, at least.
5. Retries that load the cluster come out of a budget, so that clients don't make a bad hour worse. An attempt that
   never reached a node costs nothing.
6. Once an attempt may have been applied, so may the request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Set

from .errors import Applied, Details

#: Full jitter: a wait of 0 to this, doubled with each failure up to the second.
BACKOFF_FIRST = 0.05
BACKOFF_MOST = 2.0
#: An endpoint that failed is asked last for this long, doubled with each failure in a row up to the second.
SHUN_FIRST = 1.0
SHUN_MOST = 30.0
#: The budget of retries: so many at once, one more for ten requests, and one a second.
BUDGET_MOST = 20.0
BUDGET_PER_REQUEST = 0.1
BUDGET_PER_SECOND = 1.0
#: An attempt has this share of the time that is left, so that there is time for another node if one is silent.
ATTEMPT_SHARE = 0.5
#: Less than this is not worth dividing.
ATTEMPT_LEAST = 0.5
#: A node's own deadline is this share of the attempt's: its answer says more than a silence.
NODE_SHARE = 0.9

RETRIED = frozenset(
    {"UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "INTERNAL", "UNKNOWN", "CANCELLED"}
)


@dataclass(frozen=True)
class Broken:
    """How an attempt failed."""

    #: gRPC's name.
    code: str
    message: str
    #: Of this attempt, if it was a write.
    applied: Applied
    #: What the node said besides; None if this did not come from a node.
    details: Optional[Details] = None
    #: Seconds to wait, if the node said so.
    retry_after: Optional[float] = None
    #: False if it never left: there was no connection.
    sent: bool = True


class Budget:
    """A bucket of tokens: each retry takes one."""

    def __init__(self, now: float) -> None:
        self._tokens = BUDGET_MOST
        self._at = now

    def request(self, now: float) -> None:
        """A new request, which earns a part of a retry."""
        self._fill(now, BUDGET_PER_REQUEST)

    def take(self, now: float) -> bool:
        """Whether a retry may be sent; it is paid for if so."""
        self._fill(now, 0.0)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def _fill(self, now: float, more: float) -> None:
        more += max(0.0, now - self._at) * BUDGET_PER_SECOND
        self._tokens = min(BUDGET_MOST, self._tokens + more)
        self._at = max(self._at, now)


class Endpoints:
    """Which of the endpoints to ask: homes of the key first, else in turn, and those that failed of late last."""

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ValueError("no endpoints")
        self._usable = list(range(count))
        self._next = 0
        self._failures: Dict[int, int] = {}
        self._shunned: Dict[int, float] = {}

    @property
    def usable(self) -> List[int]:
        return list(self._usable)

    def add(self, endpoint: int) -> None:
        """One more, which was reached."""
        if endpoint not in self._usable:
            self._usable.append(endpoint)

    def pick(self, now: float, tried: Set[int], homes: Sequence[int] = ()) -> int:
        """The next to ask. `tried` are those that have failed this request since all were tried; `homes` come before
        others, in their order."""
        turn = [*self._usable[self._next :], *self._usable[: self._next]]
        left = [e for e in turn if e not in tried] or turn
        well = [e for e in left if self._shunned.get(e, now) <= now]
        home = [e for e in homes if e in well]
        if home:
            return home[0]
        chosen = well[0] if well else min(left, key=lambda e: self._shunned.get(e, now))
        self._next = (self._usable.index(chosen) + 1) % len(self._usable)
        return chosen

    def answered(self, endpoint: int) -> None:
        self._failures.pop(endpoint, None)
        self._shunned.pop(endpoint, None)

    def failed(self, endpoint: int, now: float) -> None:
        failures = self._failures.get(endpoint, 0)
        self._failures[endpoint] = failures + 1
        self._shunned[endpoint] = now + min(SHUN_MOST, SHUN_FIRST * 2.0 ** min(failures, 16))


def blames_node(broken: Broken) -> bool:
    """Whether another endpoint is likely to do better."""
    return broken.code in RETRIED


class Attempts:
    """One request and its attempts."""

    def __init__(self, now: float, deadline: float, *, reads: bool, repeatable: bool, endpoints: int) -> None:
        self.deadline = deadline
        self.tried: Set[int] = set()
        self.failures: List[Broken] = []
        self._began = now
        self._reads = reads
        self._repeatable = reads or repeatable
        self._endpoints = endpoints

    def time_of_attempt(self, now: float) -> float:
        """Seconds that the next attempt may take; 0 or less when the time is up."""
        left = self.deadline - now
        # Alone, or not to be sent again: all that is left. So too when there is little.
        if self._endpoints == 1 or not self._repeatable or left * ATTEMPT_SHARE < ATTEMPT_LEAST:
            return left
        return left * ATTEMPT_SHARE

    def failed(
        self, now: float, endpoint: int, broken: Broken, chance: float, budget: Budget
    ) -> Optional[float]:
        """Seconds to wait before the next attempt, or None: it is over."""
        self.failures.append(broken)
        self.tried.add(endpoint)
        if len(self.tried) >= self._endpoints:
            self.tried.clear()
        if broken.code not in RETRIED:
            return None
        if broken.applied is Applied.MAYBE and not self._repeatable:
            return None
        most = min(BACKOFF_MOST, BACKOFF_FIRST * 2.0 ** min(len(self.failures) - 1, 16))
        wait = max(chance * most, broken.retry_after or 0.0)
        if now + wait >= self.deadline:
            return None
        if broken.sent and not budget.take(now):
            return None
        return wait

    def applied(self) -> Applied:
        """What is known of the whole request."""
        if self._reads or all(broken.applied is Applied.NO for broken in self.failures):
            return Applied.NO
        return Applied.MAYBE

    def verdict(self) -> Broken:
        """The failure to tell of: the final one, else the last that says most about the outcome."""
        last = self.failures[-1]
        if last.code not in RETRIED:
            return last
        alike = [broken for broken in self.failures if broken.applied is self.applied()] or self.failures
        return ([broken for broken in alike if broken.details] or alike)[-1]
