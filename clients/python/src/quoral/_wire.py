"""Between the client's values and the messages of the protos, errors included."""

from __future__ import annotations

import os
from typing import Any, Dict, Iterator, Optional, Tuple, Type, Union

import grpc
from google.protobuf.message import DecodeError, Message

from ._decide import Broken
from .errors import (
    AlreadyExists,
    Applied,
    Details,
    InvalidArgument,
    NotFound,
    Overloaded,
    QuoralError,
    Unavailable,
    Unknown,
)
from .types import Delete, Entry, Get, Got, Item, Keyspace, Level, Put, RequestId, Sibling, Text, Written
from .v1 import cluster_pb2, failure_pb2, kv_pb2

LEVELS = {"one": kv_pb2.ONE, "quorum": kv_pb2.QUORUM, "all": kv_pb2.ALL}
CODES: Dict[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}
DETAILS_KEY = "grpc-status-details-bin"
#: How gRPC begins its message when there was no connection, so that nothing was sent. Where it says otherwise the
#: attempt counts as sent, which is the safe side.
NOT_CONNECTED = "failed to connect to all addresses"
#: And what it says of a message over its own limit, which it does not send.
NOT_SENT = "sent message larger than max"


class Method:
    """A call of a service: its path, and its messages."""

    def __init__(self, service: str, name: str, request: Type[Message], response: Type[Message]) -> None:
        self.path = f"/quoral.v1.{service}/{name}"
        self.request = request
        self.response = response


PUT = Method("Kv", "Put", kv_pb2.PutRequest, kv_pb2.PutResponse)
GET = Method("Kv", "Get", kv_pb2.GetRequest, kv_pb2.GetResponse)
DELETE = Method("Kv", "Delete", kv_pb2.DeleteRequest, kv_pb2.DeleteResponse)
BATCH = Method("Kv", "Batch", kv_pb2.BatchRequest, kv_pb2.BatchResponse)
SCAN = Method("Kv", "Scan", kv_pb2.ScanRequest, kv_pb2.ScanResponse)
CREATE = Method(
    "Cluster", "CreateKeyspace", cluster_pb2.CreateKeyspaceRequest, cluster_pb2.CreateKeyspaceResponse
)
LIST = Method("Cluster", "ListKeyspaces", cluster_pb2.ListKeyspacesRequest, cluster_pb2.ListKeyspacesResponse)
STATUS = Method("Cluster", "Status", cluster_pb2.StatusRequest, cluster_pb2.StatusResponse)
LAYOUT = Method("Cluster", "Layout", cluster_pb2.LayoutRequest, cluster_pb2.LayoutResponse)
METHODS = (PUT, GET, DELETE, BATCH, SCAN, CREATE, LIST, STATUS, LAYOUT)


def raw(text: Text) -> bytes:
    return text.encode() if isinstance(text, str) else bytes(text)


def millis(seconds: float) -> int:
    return max(1, int(seconds * 1000))


def _level(fields: Dict[str, Any], name: str, level: Optional[Level]) -> None:
    if isinstance(level, str):
        if level not in LEVELS:
            raise InvalidArgument(f"{name} is {level!r}, must be a number, one, quorum or all")
        fields[f"{name}_level"] = LEVELS[level]
    elif level is not None:
        if not 0 < level < 2**32:
            raise InvalidArgument(f"{name} is {level}, must be above 0 and at most the keyspace's n")
        fields[name] = level


def _request_id(request_id: RequestId) -> bytes:
    if request_id == "auto":
        return os.urandom(16)
    return b"" if request_id is None else bytes(request_id)


def _write_fields(item: Union[Put, Delete]) -> Dict[str, Any]:
    fields: Dict[str, Any] = {
        "keyspace": item.keyspace or "",
        "key": raw(item.key),
        "sort": raw(item.sort),
        "context": item.context or b"",
        "sloppy": item.sloppy,
        "request_id": _request_id(item.request_id),
    }
    _level(fields, "w", item.w)
    return fields


def put_request(item: Put) -> kv_pb2.PutRequest:
    ttl = 0
    if item.ttl is not None:
        if item.ttl <= 0:
            raise InvalidArgument(f"ttl is {item.ttl}, must be above 0")
        ttl = millis(item.ttl)
    return kv_pb2.PutRequest(value=raw(item.value), ttl_ms=ttl, **_write_fields(item))


def delete_request(item: Delete) -> kv_pb2.DeleteRequest:
    return kv_pb2.DeleteRequest(**_write_fields(item))


def get_request(item: Get) -> kv_pb2.GetRequest:
    fields: Dict[str, Any] = {
        "keyspace": item.keyspace or "",
        "key": raw(item.key),
        "sort": raw(item.sort),
        "sloppy": item.sloppy,
    }
    _level(fields, "r", item.r)
    return kv_pb2.GetRequest(**fields)


def batch_item(item: Item) -> kv_pb2.BatchItem:
    if isinstance(item, Put):
        return kv_pb2.BatchItem(put=put_request(item))
    if isinstance(item, Delete):
        return kv_pb2.BatchItem(delete=delete_request(item))
    return kv_pb2.BatchItem(get=get_request(item))


def repeatable(item: Item) -> bool:
    """Whether sending it twice does what sending it once does."""
    return isinstance(item, Get) or item.request_id is not None


def scan_request(
    keyspace: str,
    key: Optional[Text],
    prefix: Text,
    start: Text,
    end: Text,
    reverse: bool,
    r: Optional[Level],
) -> kv_pb2.ScanRequest:
    fields: Dict[str, Any] = {}
    _level(fields, "r", r)
    return kv_pb2.ScanRequest(
        keyspace=keyspace,
        key=b"" if key is None else raw(key),
        prefix=raw(prefix),
        start=raw(start),
        end=raw(end),
        reverse=reverse,
        **fields,
    )


def _siblings(siblings: Any) -> Tuple[Sibling, ...]:
    return tuple(Sibling(s.value, s.stamp, s.expires_at_ms) for s in siblings)


def got(answer: kv_pb2.GetResponse) -> Got:
    siblings = _siblings(answer.siblings)
    return Got(answer.found, siblings, answer.context, answer.r, answer.replies, answer.sloppy)


def written(answer: Union[kv_pb2.PutResponse, kv_pb2.DeleteResponse]) -> Written:
    return Written(answer.context, answer.w, answer.acks, answer.sloppy, answer.stamp)


def entry(message: kv_pb2.ScanEntry) -> Entry:
    return Entry(message.key, message.sort, _siblings(message.siblings), message.context)


def keyspace(info: cluster_pb2.KeyspaceInfo) -> Keyspace:
    ttl = info.ttl_ms / 1000 if info.ttl_ms else None
    return Keyspace(info.name, info.conflicts, info.n, info.r, info.w, info.sloppy, ttl)


# ---- Errors. ----


def _fields(data: bytes) -> Iterator[Tuple[int, Union[int, bytes]]]:
    """Numbers and values of an encoded message's fields: of varints and of what has a length, which is all that
    google.rpc's messages have here. Raises IndexError or ValueError at anything else."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
            if shift > 63:
                raise ValueError("a number is too long")

    while at < len(data):
        tag = varint()
        if tag & 7 == 0:
            yield tag >> 3, varint()
        elif tag & 7 == 2:
            length = varint()
            if at + length > len(data):
                raise ValueError("cut off")
            yield tag >> 3, data[at : at + length]
            at += length
        else:
            raise ValueError(f"wire type {tag & 7}")


def status_details(data: bytes) -> Tuple[Optional[failure_pb2.Failure], Optional[float]]:
    """The failure and the retry delay in a `google.rpc.Status`, as far as they are there and can be read."""
    failure: Optional[failure_pb2.Failure] = None
    delay: Optional[float] = None
    try:
        for number, detail in _fields(data):
            if number != 3 or not isinstance(detail, bytes):
                continue
            any_of = dict(_fields(detail))
            url, value = any_of.get(1, b""), any_of.get(2, b"")
            if not isinstance(url, bytes) or not isinstance(value, bytes):
                continue
            name = url.rpartition(b"/")[2]
            if name == b"quoral.v1.Failure":
                failure = failure_pb2.Failure.FromString(value)
            elif name == b"google.rpc.RetryInfo":
                duration = dict(_fields(value)).get(1, b"")
                parts = dict(_fields(duration)) if isinstance(duration, bytes) else {}
                seconds, nanos = parts.get(1, 0), parts.get(2, 0)
                if isinstance(seconds, int) and isinstance(nanos, int) and 0 <= nanos < 10**9:
                    delay = min(seconds + nanos / 1e9, 3600.0)
    except (IndexError, ValueError, DecodeError):
        pass
    return failure, delay


def _from_failure(failure: failure_pb2.Failure) -> Tuple[Applied, Details]:
    applied = Applied.NO if failure.applied == failure_pb2.NO else Applied.MAYBE
    silent = tuple(failure.silent)
    return applied, Details(failure.required, failure.received, failure.alive, failure.layout_version, silent)


def broken_call(code: str, message: str, details: Optional[bytes]) -> Broken:
    """A call that failed, from its status and the metadata behind it."""
    failure, delay = status_details(details) if details else (None, None)
    if failure is not None:
        applied, more = _from_failure(failure)
        return Broken(code, message, applied, more, delay)
    if code == "UNAVAILABLE" and NOT_CONNECTED in message:
        return Broken(code, message, Applied.NO, sent=False)
    if code == "RESOURCE_EXHAUSTED" and NOT_SENT in message.lower():
        return Broken("INVALID_ARGUMENT", message, Applied.NO, sent=False)
    if code == "UNIMPLEMENTED":
        return Broken(code, message, Applied.NO)
    return Broken(code, message, Applied.MAYBE)


def broken_item(error: kv_pb2.RequestError) -> Broken:
    """An item of a batch that failed."""
    code = CODES.get(error.code, "UNKNOWN")
    applied, details = _from_failure(error.failure)
    delay = error.retry_delay_ms / 1000 if error.retry_delay_ms else None
    return Broken(code, error.message, applied, details, delay)


def error_of(broken: Broken, applied: Applied, keyspace: str) -> QuoralError:
    """What is raised when a request ends with this. `applied` is that of all its attempts."""
    code, message = broken.code, f"{broken.code}: {broken.message}"
    details = broken.details or Details()
    if applied is Applied.MAYBE:
        return Unknown(message, applied=applied, code=code, details=details)
    if code == "RESOURCE_EXHAUSTED":
        return Overloaded(message, code=code, details=details, retry_after=broken.retry_after)
    if code == "NOT_FOUND":
        return NotFound(message, code=code, details=details, keyspace=keyspace)
    kind = {
        "INVALID_ARGUMENT": InvalidArgument,
        "ALREADY_EXISTS": AlreadyExists,
        "UNAVAILABLE": Unavailable,
        "DEADLINE_EXCEEDED": Unavailable,
        "CANCELLED": Unavailable,
    }.get(code, QuoralError)
    return kind(message, code=code, details=details)
