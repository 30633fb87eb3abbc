"""What a request does, step by step, for both clients.

An operation is a generator: it yields what is to be done (call a node, or sleep), is sent what came of it, and
returns the answer. The clients only carry out these two, one by blocking and one by awaiting. So they can't differ.
"""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass
from typing import Any, Callable, Generator, List, Optional, Sequence, Tuple, TypeVar, Union

from google.protobuf.message import Message

from . import _wire as wire
from ._decide import NODE_SHARE, Attempts, Broken, Budget, Endpoints, blames_node
from ._route import AGE_FAILED, AGE_INCOMPLETE, AGE_MOST, Table
from .errors import Applied, InvalidArgument, QuoralError, Unavailable
from .types import Delete, Entry, Get, Got, Item, Keyspace, Put, Written
from .v1 import cluster_pb2, kv_pb2

#: Entries of one call of a scan: as many as a page has at most.
PAGE = 1_000
#: Seconds in which a node answers that the cluster told of, or it is not asked.
REACHED_WITHIN = 1.0
#: Of gRPC: messages up to what a node takes and gives; its own retries off; a node that is back is found soon.
OPTIONS: Tuple[Tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", 1 << 30),
    ("grpc.max_send_message_length", 64 << 20),
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),
)

T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """Ask this endpoint. Of a scan, the first page alone is wanted."""

    endpoint: int
    method: wire.Method
    request: Message
    timeout: float


@dataclass(frozen=True)
class Sleep:
    seconds: float


Effect = Union[Call, Sleep]
Op = Generator[Effect, Any, T]


class Token:
    """Where a session's token is kept between its requests."""

    def __init__(self, token: bytes) -> None:
        self.token = token


def parse(endpoints: Union[str, Sequence[str]]) -> List[str]:
    """`host:port`, several by comma or as a list."""
    listed = endpoints.split(",") if isinstance(endpoints, str) else list(endpoints)
    found = [endpoint.strip() for endpoint in listed if endpoint.strip()]
    if not found:
        raise InvalidArgument("no endpoints, must be one or more host:port")
    return found


class Core:
    """What the requests of one client share. Used by many threads."""

    def __init__(
        self,
        endpoints: Sequence[str],
        timeout: float,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
        routing: bool = True,
    ) -> None:
        if timeout <= 0:
            raise InvalidArgument(f"timeout is {timeout}, must be above 0")
        #: Endpoints: those given, then those that the cluster told of. One keeps its place for ever.
        self.names = list(endpoints)
        self._routing = routing
        self._table: Optional[Table] = None
        #: None while a refresh is under way.
        self._refresh_at: Optional[float] = clock()
        self._turn = 0
        self._timeout = timeout
        self._clock = clock
        self._chance = chance
        self._lock = threading.Lock()
        self._budget = Budget(clock())
        self._endpoints = Endpoints(len(self.names))
        if len(self.names) > 1:
            # Not every client of a list begins with its first.
            self._endpoints.pick(clock(), set(range(int(chance() * len(self.names)))))

    def deadline(self, timeout: Optional[float]) -> float:
        return self._clock() + (self._timeout if timeout is None else timeout)

    def left(self, deadline: float) -> float:
        return deadline - self._clock()

    def request(
        self,
        method: wire.Method,
        make: Callable[[float], Message],
        deadline: float,
        *,
        reads: bool = False,
        repeatable: bool = False,
        keyspace: str = "",
        key: Optional[bytes] = None,
    ) -> Op[Any]:
        """Sends until there is an answer, a final refusal, or no time. `make` gets the node's time in seconds. With a
        partition key it goes to a home replica of that, if they are known."""
        now = self._clock()
        homes = self._homes(keyspace, key, reads)
        attempts = Attempts(now, deadline, reads=reads, repeatable=repeatable, endpoints=len(self._endpoints.usable))
        with self._lock:
            self._budget.request(now)
        while True:
            now = self._clock()
            limit = attempts.time_of_attempt(now)
            if limit <= 0:
                if attempts.failures:
                    raise wire.error_of(attempts.verdict(), attempts.applied(), keyspace)
                raise Unavailable("no time was left to ask a node")
            with self._lock:
                endpoint = self._endpoints.pick(now, attempts.tried, homes)
            answer = yield Call(endpoint, method, make(limit * NODE_SHARE), limit)
            now = self._clock()
            if not isinstance(answer, Broken):
                with self._lock:
                    self._endpoints.answered(endpoint)
                return answer
            with self._lock:
                self._heard_of_layout(answer, now)
                if blames_node(answer):
                    self._endpoints.failed(endpoint, now)
                wait = attempts.failed(now, endpoint, answer, self._chance(), self._budget)
            if wait is None:
                raise wire.error_of(attempts.verdict(), attempts.applied(), keyspace)
            if wait > 0:
                yield Sleep(wait)

    def _homes(self, keyspace: str, key: Optional[bytes], reads: bool) -> List[int]:
        """The places of a key's home replicas. Writes begin with the first; reads take turns."""
        table = self._table
        if key is None or table is None:
            return []
        homes = table.homes(keyspace, key)
        with self._lock:
            self._turn += 1
            usable = {self.names[endpoint]: endpoint for endpoint in self._endpoints.usable}
            first = self._turn % len(homes) if reads and homes else 0
            return [usable[name] for name in [*homes[first:], *homes[:first]] if name in usable]

    def _heard_of_layout(self, answer: Broken, now: float) -> None:
        """A node that speaks of a newer layout makes the table old."""
        known, told = self._table, answer.details.layout_version if answer.details else 0
        if known is not None and told > known.layout_version and self._refresh_at is not None:
            self._refresh_at = min(self._refresh_at, now + AGE_FAILED)

    def refresh_is_due(self) -> bool:
        """Whether to run `refresh` now, in the background. Says so to one caller at a time."""
        with self._lock:
            if not self._routing or self._refresh_at is None or self._clock() < self._refresh_at:
                return False
            self._refresh_at = None
            return True

    def refresh(self) -> Op[None]:
        """Asks the cluster who owns what. If it can't say, what was known stays, and it is asked again soon."""
        wait = AGE_FAILED
        try:
            deadline = self.deadline(AGE_FAILED)
            status = yield from self.request(
                wire.STATUS, lambda _: cluster_pb2.StatusRequest(), deadline, reads=True
            )
            layout = yield from self.request(
                wire.LAYOUT, lambda _: cluster_pb2.LayoutRequest(), deadline, reads=True
            )
            listed = yield from self.request(
                wire.LIST, lambda _: cluster_pb2.ListKeyspacesRequest(), deadline, reads=True
            )
            table = Table(status, layout, listed)
            with self._lock:
                self.names.extend(name for name in table.addresses if name not in self.names)
                told = [self.names.index(name) for name in table.addresses]
                new = [endpoint for endpoint in told if endpoint not in self._endpoints.usable]
            # What the cluster tells of may not lead there from here.
            for endpoint in new:
                answer = yield Call(endpoint, wire.STATUS, cluster_pb2.StatusRequest(), REACHED_WITHIN)
                if not isinstance(answer, Broken):
                    with self._lock:
                        self._endpoints.add(endpoint)
            self._table = table
            wait = AGE_MOST if table.is_complete else AGE_INCOMPLETE
        except QuoralError:
            pass
        finally:
            with self._lock:
                self._refresh_at = self._clock() + wait

    def put(self, item: Put, deadline: float, token: Optional[Token] = None) -> Op[Written]:
        return self._write(wire.PUT, wire.put_request(item), item, deadline, token)

    def delete(self, item: Delete, deadline: float, token: Optional[Token] = None) -> Op[Written]:
        return self._write(wire.DELETE, wire.delete_request(item), item, deadline, token)

    def _write(
        self,
        method: wire.Method,
        request: Union[kv_pb2.PutRequest, kv_pb2.DeleteRequest],
        item: Union[Put, Delete],
        deadline: float,
        token: Optional[Token],
    ) -> Op[Written]:
        answer = yield from self.request(
            method,
            _filled(request, token),
            deadline,
            repeatable=wire.repeatable(item),
            keyspace=item.keyspace or "",
            key=wire.raw(item.key),
        )
        if token is not None:
            token.token = answer.session
        return wire.written(answer)

    def get(self, item: Get, deadline: float, token: Optional[Token] = None) -> Op[Got]:
        request = wire.get_request(item)
        answer = yield from self.request(
            wire.GET,
            _filled(request, token),
            deadline,
            reads=True,
            keyspace=item.keyspace or "",
            key=wire.raw(item.key),
        )
        if token is not None:
            token.token = answer.session
        return wire.got(answer)

    def batch(
        self, items: Sequence[Item], keyspace: str, deadline: float
    ) -> Op[List[Union[Written, Got, QuoralError]]]:
        request = kv_pb2.BatchRequest(keyspace=keyspace, items=[wire.batch_item(item) for item in items])
        answer = yield from self.request(
            wire.BATCH,
            _filled(request, None),
            deadline,
            reads=all(isinstance(item, Get) for item in items),
            repeatable=all(wire.repeatable(item) for item in items),
            keyspace=keyspace,
        )
        if len(answer.statuses) != len(items):
            raise QuoralError(f"{len(answer.statuses)} answers to {len(items)} items", applied=Applied.MAYBE)
        return [_outcome(item, status, keyspace) for item, status in zip(items, answer.statuses)]

    def page(
        self, request: kv_pb2.ScanRequest, cursor: bytes, limit: Optional[int], deadline: float
    ) -> Op[Tuple[List[Entry], bytes]]:
        """A page of a scan behind the cursor, and the cursor behind it, empty at the end. Any node can go on."""
        part = kv_pb2.ScanRequest()
        part.CopyFrom(request)
        part.cursor = cursor
        part.limit = PAGE if limit is None else min(PAGE, limit)
        answer = yield from self.request(
            wire.SCAN,
            _filled(part, None),
            deadline,
            reads=True,
            keyspace=request.keyspace,
            key=request.key or None,
        )
        return [wire.entry(entry) for entry in answer.entries], answer.cursor

    def create_keyspace(self, request: cluster_pb2.CreateKeyspaceRequest, deadline: float) -> Op[Keyspace]:
        answer = yield from self.request(wire.CREATE, lambda _: request, deadline, keyspace=request.name)
        return wire.keyspace(answer.keyspace)

    def keyspaces(self, deadline: float) -> Op[List[Keyspace]]:
        request = cluster_pb2.ListKeyspacesRequest()
        answer = yield from self.request(wire.LIST, lambda _: request, deadline, reads=True)
        return [wire.keyspace(info) for info in answer.keyspaces]


def no_turn() -> Unavailable:
    return Unavailable("the earlier requests of the session took all the time")


def _filled(request: Any, token: Optional[Token]) -> Callable[[float], Message]:
    """The request with the time that its node has, and the session's token. Each attempt is the same but for that."""
    if token is not None:
        request.session = token.token

    def make(seconds: float) -> Message:
        request.timeout_ms = wire.millis(seconds)
        return request  # type: ignore[no-any-return]

    return make


def _outcome(item: Item, status: kv_pb2.BatchStatus, keyspace: str) -> Union[Written, Got, QuoralError]:
    kind = status.WhichOneof("outcome")
    if kind == "put":
        return wire.written(status.put)
    if kind == "delete":
        return wire.written(status.delete)
    if kind == "get":
        return wire.got(status.get)
    broken = wire.broken_item(status.error)
    applied = Applied.NO if isinstance(item, Get) else broken.applied
    return wire.error_of(broken, applied, item.keyspace or keyspace)
