"""The client for asyncio: the same methods as `quoral.Client`, awaited. It belongs to one event loop."""

from __future__ import annotations

import asyncio
import inspect
from types import TracebackType
from typing import (
    Any,
    AsyncIterator,
    Awaitable,
    Callable,
    Dict,
    Iterable,
    List,
    Optional,
    Sequence,
    Tuple,
    Type,
    TypeVar,
    Union,
)

import grpc
import grpc.aio

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
        self, core_: core.Core, run: Callable[[Any, float], Awaitable[Any]], token: Optional[core.Token]
    ) -> None:
        self._core = core_
        self._run = run
        self._token = token

    async def put(
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
        written: Written = await self._run(self._core.put(item, deadline, self._token), deadline)
        return written

    async def get(
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
        got: Got = await self._run(self._core.get(item, deadline, self._token), deadline)
        return got

    async def delete(
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
        written: Written = await self._run(self._core.delete(item, deadline, self._token), deadline)
        return written

    async def update(
        self,
        key: Text,
        merge: Callable[[List[bytes]], Union[Text, Awaitable[Text]]],
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

        `merge` gets the values there are, none or one or several, and returns the new one or an awaitable of it. For
        a siblings keyspace: what others write meanwhile stays beside it, for the next merge. In an lww keyspace the
        last one wins.
        """
        deadline = self._core.deadline(timeout)
        op = self._core.get(Get(key, keyspace, sort, r, sloppy), deadline, self._token)
        got: Got = await self._run(op, deadline)
        merged = merge(got.values)
        value = await merged if inspect.isawaitable(merged) else merged
        item = Put(key, value, keyspace, sort, got.context, w, ttl, sloppy)
        written: Written = await self._run(self._core.put(item, deadline, self._token), deadline)
        return written


class Session(_Calls):
    """One client's reads and writes: it reads what it wrote and never goes back, through any node and with any r
    and w. Its requests are sent one after another, since each carries what the one before it brought."""

    def __init__(self, core_: core.Core, run: Callable[[Any, float], Awaitable[Any]], token: bytes) -> None:
        lock = asyncio.Lock()
        held = core.Token(token)

        async def in_turn(op: Any, deadline: float) -> Any:
            try:
                await asyncio.wait_for(lock.acquire(), max(0.0, core_.left(deadline)))
            except asyncio.TimeoutError:
                raise core.no_turn() from None
            try:
                return await run(op, deadline)
            finally:
                lock.release()

        super().__init__(core_, in_turn, held)
        self._held = held

    @property
    def token(self) -> bytes:
        """What the session has seen: pass it to `Client.session` to go on elsewhere. Empty before the first answer."""
        return self._held.token

    async def __aenter__(self) -> "Session":
        return self

    async def __aexit__(self, *_: object) -> None:
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
        self._channels: List[grpc.aio.Channel] = []
        self._stubs: List[Dict[str, Callable[..., Any]]] = []
        self._refreshing: Optional["asyncio.Task[None]"] = None

    async def close(self) -> None:
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.wait([self._refreshing])
        for channel in self._channels:
            await channel.close()

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        await self.close()

    def session(self, token: bytes = b"") -> Session:
        """A new session, or one that goes on from a token."""
        return Session(self._core, self._drive, token)

    async def batch(
        self, items: Iterable[Item], *, keyspace: str = "default", timeout: Optional[float] = None
    ) -> List[Union[Written, Got, QuoralError]]:
        """Up to 1 000 puts, gets and deletes in one message, with an outcome for each in the same order.

        Not a transaction: an item that failed has its error as its outcome, and the others are done. Items of one
        key are carried out in their order.
        """
        outcomes: List[Union[Written, Got, QuoralError]] = await self._drive(
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
    ) -> AsyncIterator[Entry]:
        """The sort keys of a partition key, in order, or with no key the whole keyspace.

        From `start`, which is in, to `end`, which is not. `timeout` is for each page; when a node fails another one
        goes on behind the last page.
        """
        request = wire.scan_request(keyspace, key, prefix, start, end, reverse, r)
        if limit is not None and limit < 0:
            raise InvalidArgument(f"limit is {limit}, must not be below 0")
        return self._pages(request, limit, timeout)

    async def _pages(
        self, request: Any, limit: Optional[int], timeout: Optional[float]
    ) -> AsyncIterator[Entry]:
        cursor, left = b"", limit
        while left is None or left > 0:
            page: Tuple[List[Entry], bytes] = await self._drive(
                self._core.page(request, cursor, left, self._core.deadline(timeout))
            )
            entries, cursor = page
            for entry in entries:
                yield entry
            if left is not None:
                left -= len(entries)
            if not cursor:
                return

    async def create_keyspace(
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
        made: Keyspace = await self._drive(self._core.create_keyspace(request, self._core.deadline(timeout)))
        return made

    async def keyspaces(self, *, timeout: Optional[float] = None) -> List[Keyspace]:
        listed: List[Keyspace] = await self._drive(self._core.keyspaces(self._core.deadline(timeout)))
        return listed

    async def _drive(self, op: "core.Op[T]", _deadline: float = 0.0) -> T:
        if self._core.refresh_is_due():
            self._refreshing = asyncio.get_running_loop().create_task(self._run_op(self._core.refresh()))
        return await self._run_op(op)

    async def _run_op(self, op: "core.Op[T]") -> T:
        try:
            effect = next(op)
            while True:
                if isinstance(effect, core.Sleep):
                    await asyncio.sleep(effect.seconds)
                    effect = op.send(None)
                else:
                    effect = op.send(await self._call(effect))
        except StopIteration as done:
            answer: T = done.value
            return answer

    async def _call(self, call: core.Call) -> Any:
        # Not before: a channel belongs to the loop that runs when it is made.
        for name in self._core.names[len(self._stubs) : call.endpoint + 1]:
            channel = grpc.aio.insecure_channel(name, options=core.OPTIONS)
            self._channels.append(channel)
            self._stubs.append(_stubs(channel))
        send = self._stubs[call.endpoint][call.method.path]
        try:
            if call.method is not wire.SCAN:
                return await send(call.request, timeout=call.timeout)
            pages = send(call.request, timeout=call.timeout)
            try:
                page = await pages.read()
                return wire.SCAN.response() if page is grpc.aio.EOF else page
            finally:
                pages.cancel()
        except grpc.aio.AioRpcError as error:
            return _broken(error)


def _broken(error: Any) -> Broken:
    found = {entry[0]: entry[1] for entry in error.trailing_metadata() or ()}
    details = found.get(wire.DETAILS_KEY)
    return wire.broken_call(error.code().name, error.details() or "", details)


def _stubs(channel: grpc.aio.Channel) -> Dict[str, Callable[..., Any]]:
    stubs: Dict[str, Callable[..., Any]] = {}
    for method in wire.METHODS:
        kind = channel.unary_stream if method is wire.SCAN else channel.unary_unary
        stubs[method.path] = kind(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
    return stubs
