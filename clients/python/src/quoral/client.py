"""The client that blocks. One may be shared by all threads of a process."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
    Iterator,
    List,
    Optional,
    Sequence,
    Tuple,
    Type,
    TypeVar,
    Union,
)

import grpc

from . import _core as core
from . import _wire as wire
from ._decide import Broken
from .errors import InvalidArgument, QuoralError
from .types import Delete, Entry, Get, Got, Item, Keyspace, Level, Put, RequestId, Text, Written
from .v1 import cluster_pb2

T = TypeVar("T")


class _Calls:
    """The requests that a client and a session have in common."""

    def __init__(
        self, core_: core.Core, run: Callable[[Any, float], Any], token: Optional[core.Token]
    ) -> None:
        self._core = core_
        self._run = run
        self._token = token

    def put(
        self,
        key: Text,
        value: Text,
        *,
        keyspace: str = "default",
        sort: Text = b"",
        context: Optional[bytes] = None,
        w: Optional[Level] = None,
        ttl: Optional[float] = None,
        sloppy: Optional[bool] = None,
        request_id: RequestId = "auto",
        timeout: Optional[float] = None,
    ) -> Written:
        """Writes a value. Returns when `w` replicas have it on stable storage.

        In a siblings keyspace `context` says what this replaces: without one it replaces nothing. `ttl` and
        `timeout` are seconds. What is not given is what the keyspace says.
        """
        item = Put(key, value, keyspace, sort, context, w, ttl, sloppy, request_id)
        deadline = self._core.deadline(timeout)
        written: Written = self._run(self._core.put(item, deadline, self._token), deadline)
        return written

    def get(
        self,
        key: Text,
        *,
        keyspace: str = "default",
        sort: Text = b"",
        r: Optional[Level] = None,
        sloppy: Optional[bool] = None,
        timeout: Optional[float] = None,
    ) -> Got:
        """Reads a key: all its concurrent values, with the context that covers them."""
        item = Get(key, keyspace, sort, r, sloppy)
        deadline = self._core.deadline(timeout)
        got: Got = self._run(self._core.get(item, deadline, self._token), deadline)
        return got

    def delete(
        self,
        key: Text,
        *,
        keyspace: str = "default",
        sort: Text = b"",
        context: Optional[bytes] = None,
        w: Optional[Level] = None,
        sloppy: Optional[bool] = None,
        request_id: RequestId = "auto",
        timeout: Optional[float] = None,
    ) -> Written:
        """Deletes a key, or in a siblings keyspace what the context covers of it."""
        item = Delete(key, keyspace, sort, context, w, sloppy, request_id)
        deadline = self._core.deadline(timeout)
        written: Written = self._run(self._core.delete(item, deadline, self._token), deadline)
        return written

    def update(
        self,
        key: Text,
        merge: Callable[[List[bytes]], Text],
        *,
        keyspace: str = "default",
        sort: Text = b"",
        r: Optional[Level] = None,
        w: Optional[Level] = None,
        ttl: Optional[float] = None,
        sloppy: Optional[bool] = None,
        timeout: Optional[float] = None,
    ) -> Written:
        """Reads, merges, and writes what replaces all that was read.

        `merge` gets the values there are, none or one or several, and returns the new one. For a siblings keyspace:
        what others write meanwhile stays beside it, for the next merge. In an lww keyspace the last one wins.
        """
        deadline = self._core.deadline(timeout)
        op = self._core.get(Get(key, keyspace, sort, r, sloppy), deadline, self._token)
        got: Got = self._run(op, deadline)
        item = Put(key, merge(got.values), keyspace, sort, got.context, w, ttl, sloppy)
        written: Written = self._run(self._core.put(item, deadline, self._token), deadline)
        return written


class Session(_Calls):
    """One client's reads and writes: it reads what it wrote and never goes back, through any node and with any r
    and w. Its requests are sent one after another, since each carries what the one before it brought."""

    def __init__(self, core_: core.Core, run: Callable[[Any, float], Any], token: bytes) -> None:
        lock = threading.Lock()
        held = core.Token(token)

        def in_turn(op: Any, deadline: float) -> Any:
            if not lock.acquire(timeout=max(0.0, core_.left(deadline))):
                raise core.no_turn()
            try:
                return run(op, deadline)
            finally:
                lock.release()

        super().__init__(core_, in_turn, held)
        self._held = held

    @property
    def token(self) -> bytes:
        """What the session has seen: pass it to `Client.session` to go on elsewhere. Empty before the first answer."""
        return self._held.token

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Client(_Calls):
    """A client of a cluster.

    `endpoints` are `host:port`, as a list or by comma; any node answers for any key, and another is asked when one
    fails. `timeout` is the longest time in seconds that a request may take, with all its attempts. With `routing` the
    other nodes are learnt, in the background, and a request goes to a home replica of its key; without it requests go
    to the given endpoints alone, in turn.
    """

    def __init__(
        self,
        endpoints: Union[str, Sequence[str]] = "127.0.0.1:7400",
        timeout: float = 5.0,
        *,
        routing: bool = True,
    ) -> None:
        super().__init__(core.Core(core.parse(endpoints), timeout, routing=routing), self._drive, None)
        self._lock = threading.Lock()
        self._is_closed = False
        self._channels: List[grpc.Channel] = []
        self._stubs: List[Dict[str, Callable[..., Any]]] = []

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            channels, self._channels = self._channels, []
        for channel in channels:
            channel.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()

    def session(self, token: bytes = b"") -> Session:
        """A new session, or one that goes on from a token."""
        return Session(self._core, self._drive, token)

    def batch(
        self, items: Iterable[Item], *, keyspace: str = "default", timeout: Optional[float] = None
    ) -> List[Union[Written, Got, QuoralError]]:
        """Up to 1 000 puts, gets and deletes in one message, with an outcome for each in the same order.

        Not a transaction: an item that failed has its error as its outcome, and the others are done. Items of one
        key are carried out in their order.
        """
        outcomes: List[Union[Written, Got, QuoralError]] = self._drive(
            self._core.batch(list(items), keyspace, self._core.deadline(timeout))
        )
        return outcomes

    def scan(
        self,
        key: Optional[Text] = None,
        *,
        keyspace: str = "default",
        prefix: Text = b"",
        start: Text = b"",
        end: Text = b"",
        limit: Optional[int] = None,
        reverse: bool = False,
        r: Optional[Level] = None,
        timeout: Optional[float] = None,
    ) -> Iterator[Entry]:
        """The sort keys of a partition key, in order, or with no key the whole keyspace.

        From `start`, which is in, to `end`, which is not. `timeout` is for each page; when a node fails another one
        goes on behind the last page.
        """
        request = wire.scan_request(keyspace, key, prefix, start, end, reverse, r)
        if limit is not None and limit < 0:
            raise InvalidArgument(f"limit is {limit}, must not be below 0")
        return self._pages(request, limit, timeout)

    def _pages(self, request: Any, limit: Optional[int], timeout: Optional[float]) -> Iterator[Entry]:
        cursor, left = b"", limit
        while left is None or left > 0:
            page: Tuple[List[Entry], bytes] = self._drive(
                self._core.page(request, cursor, left, self._core.deadline(timeout))
            )
            entries, cursor = page
            yield from entries
            if left is not None:
                left -= len(entries)
            if not cursor:
                return

    def create_keyspace(
        self,
        name: str,
        *,
        conflicts: str = "lww",
        n: int = 0,
        r: int = 0,
        w: int = 0,
        sloppy: bool = False,
        ttl: Optional[float] = None,
        timeout: Optional[float] = None,
    ) -> Keyspace:
        """Makes a keyspace. Raises `AlreadyExists` if there is one of this name. 0 means the default."""
        request = cluster_pb2.CreateKeyspaceRequest(
            name=name,
            conflicts=conflicts,
            n=n,
            r=r,
            w=w,
            sloppy=sloppy,
            ttl_ms=wire.millis(ttl) if ttl else 0,
        )
        made: Keyspace = self._drive(self._core.create_keyspace(request, self._core.deadline(timeout)))
        return made

    def keyspaces(self, *, timeout: Optional[float] = None) -> List[Keyspace]:
        listed: List[Keyspace] = self._drive(self._core.keyspaces(self._core.deadline(timeout)))
        return listed

    def _refresh(self) -> None:
        try:
            self._run_op(self._core.refresh())
        except ValueError:
            # The client was closed meanwhile, and its channels with it.
            pass

    def _drive(self, op: "core.Op[T]", _deadline: float = 0.0) -> T:
        if self._core.refresh_is_due():
            # It ends within seconds, and holds no program up that ends before.
            threading.Thread(target=self._refresh, name="quoral-refresh", daemon=True).start()
        return self._run_op(op)

    def _run_op(self, op: "core.Op[T]") -> T:
        try:
            effect = next(op)
            while True:
                if isinstance(effect, core.Sleep):
                    time.sleep(effect.seconds)
                    effect = op.send(None)
                else:
                    effect = op.send(self._call(effect))
        except StopIteration as done:
            answer: T = done.value
            return answer

    def _stub(self, endpoint: int) -> Dict[str, Callable[..., Any]]:
        """The calls of an endpoint; a channel to it is made when it is first asked."""
        if endpoint >= len(self._stubs):
            with self._lock:
                if self._is_closed:
                    raise ValueError("the client is closed")
                for name in self._core.names[len(self._stubs) : endpoint + 1]:
                    channel = grpc.insecure_channel(name, options=core.OPTIONS)
                    self._channels.append(channel)
                    self._stubs.append(_stubs(channel))
        return self._stubs[endpoint]

    def _call(self, call: core.Call) -> Any:
        send = self._stub(call.endpoint)[call.method.path]
        try:
            if call.method is not wire.SCAN:
                return send(call.request, timeout=call.timeout)
            pages = send(call.request, timeout=call.timeout)
            try:
                return next(pages, None) or wire.SCAN.response()
            finally:
                pages.cancel()
        except grpc.RpcError as error:
            return _broken(error)


def _broken(error: Any) -> Broken:
    found = {entry[0]: entry[1] for entry in error.trailing_metadata() or ()}
    details = found.get(wire.DETAILS_KEY)
    return wire.broken_call(error.code().name, error.details() or "", details)


def _stubs(channel: grpc.Channel) -> Dict[str, Callable[..., Any]]:
    stubs: Dict[str, Callable[..., Any]] = {}
    for method in wire.METHODS:
        kind = channel.unary_stream if method is wire.SCAN else channel.unary_unary
        stubs[method.path] = kind(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
    return stubs
