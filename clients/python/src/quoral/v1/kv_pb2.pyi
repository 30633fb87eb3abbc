from quoral.v1 import failure_pb2 as _failure_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Level(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LEVEL_UNSPECIFIED: _ClassVar[Level]
    ONE: _ClassVar[Level]
    QUORUM: _ClassVar[Level]
    ALL: _ClassVar[Level]
LEVEL_UNSPECIFIED: Level
ONE: Level
QUORUM: Level
ALL: Level

class PutRequest(_message.Message):
    __slots__ = ("keyspace", "key", "sort", "value", "context", "w", "w_level", "ttl_ms", "timeout_ms", "sloppy", "request_id", "session")
    KEYSPACE_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    SORT_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    W_FIELD_NUMBER: _ClassVar[int]
    W_LEVEL_FIELD_NUMBER: _ClassVar[int]
    TTL_MS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    SLOPPY_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    keyspace: str
    key: bytes
    sort: bytes
    value: bytes
    context: bytes
    w: int
    w_level: Level
    ttl_ms: int
    timeout_ms: int
    sloppy: bool
    request_id: bytes
    session: bytes
    def __init__(self, keyspace: _Optional[str] = ..., key: _Optional[bytes] = ..., sort: _Optional[bytes] = ..., value: _Optional[bytes] = ..., context: _Optional[bytes] = ..., w: _Optional[int] = ..., w_level: _Optional[_Union[Level, str]] = ..., ttl_ms: _Optional[int] = ..., timeout_ms: _Optional[int] = ..., sloppy: bool = ..., request_id: _Optional[bytes] = ..., session: _Optional[bytes] = ...) -> None: ...

class PutResponse(_message.Message):
    __slots__ = ("context", "w", "acks", "sloppy", "stamp", "session")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    W_FIELD_NUMBER: _ClassVar[int]
    ACKS_FIELD_NUMBER: _ClassVar[int]
    SLOPPY_FIELD_NUMBER: _ClassVar[int]
    STAMP_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    context: bytes
    w: int
    acks: int
    sloppy: bool
    stamp: int
    session: bytes
    def __init__(self, context: _Optional[bytes] = ..., w: _Optional[int] = ..., acks: _Optional[int] = ..., sloppy: bool = ..., stamp: _Optional[int] = ..., session: _Optional[bytes] = ...) -> None: ...

class DeleteRequest(_message.Message):
    __slots__ = ("keyspace", "key", "sort", "context", "w", "w_level", "timeout_ms", "sloppy", "request_id", "session")
    KEYSPACE_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    SORT_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    W_FIELD_NUMBER: _ClassVar[int]
    W_LEVEL_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    SLOPPY_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    keyspace: str
    key: bytes
    sort: bytes
    context: bytes
    w: int
    w_level: Level
    timeout_ms: int
    sloppy: bool
    request_id: bytes
    session: bytes
    def __init__(self, keyspace: _Optional[str] = ..., key: _Optional[bytes] = ..., sort: _Optional[bytes] = ..., context: _Optional[bytes] = ..., w: _Optional[int] = ..., w_level: _Optional[_Union[Level, str]] = ..., timeout_ms: _Optional[int] = ..., sloppy: bool = ..., request_id: _Optional[bytes] = ..., session: _Optional[bytes] = ...) -> None: ...

class DeleteResponse(_message.Message):
    __slots__ = ("context", "w", "acks", "sloppy", "stamp", "session")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    W_FIELD_NUMBER: _ClassVar[int]
    ACKS_FIELD_NUMBER: _ClassVar[int]
    SLOPPY_FIELD_NUMBER: _ClassVar[int]
    STAMP_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    context: bytes
    w: int
    acks: int
    sloppy: bool
    stamp: int
    session: bytes
    def __init__(self, context: _Optional[bytes] = ..., w: _Optional[int] = ..., acks: _Optional[int] = ..., sloppy: bool = ..., stamp: _Optional[int] = ..., session: _Optional[bytes] = ...) -> None: ...

class GetRequest(_message.Message):
    __slots__ = ("keyspace", "key", "sort", "r", "r_level", "timeout_ms", "sloppy", "session")
    KEYSPACE_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    SORT_FIELD_NUMBER: _ClassVar[int]
    R_FIELD_NUMBER: _ClassVar[int]
    R_LEVEL_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    SLOPPY_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    keyspace: str
    key: bytes
    sort: bytes
    r: int
    r_level: Level
    timeout_ms: int
    sloppy: bool
    session: bytes
    def __init__(self, keyspace: _Optional[str] = ..., key: _Optional[bytes] = ..., sort: _Optional[bytes] = ..., r: _Optional[int] = ..., r_level: _Optional[_Union[Level, str]] = ..., timeout_ms: _Optional[int] = ..., sloppy: bool = ..., session: _Optional[bytes] = ...) -> None: ...

class Sibling(_message.Message):
    __slots__ = ("value", "stamp", "expires_at_ms")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    STAMP_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_MS_FIELD_NUMBER: _ClassVar[int]
    value: bytes
    stamp: int
    expires_at_ms: int
    def __init__(self, value: _Optional[bytes] = ..., stamp: _Optional[int] = ..., expires_at_ms: _Optional[int] = ...) -> None: ...

class GetResponse(_message.Message):
    __slots__ = ("found", "siblings", "context", "r", "replies", "sloppy", "session")
    FOUND_FIELD_NUMBER: _ClassVar[int]
    SIBLINGS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    R_FIELD_NUMBER: _ClassVar[int]
    REPLIES_FIELD_NUMBER: _ClassVar[int]
    SLOPPY_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    found: bool
    siblings: _containers.RepeatedCompositeFieldContainer[Sibling]
    context: bytes
    r: int
    replies: int
    sloppy: bool
    session: bytes
    def __init__(self, found: bool = ..., siblings: _Optional[_Iterable[_Union[Sibling, _Mapping]]] = ..., context: _Optional[bytes] = ..., r: _Optional[int] = ..., replies: _Optional[int] = ..., sloppy: bool = ..., session: _Optional[bytes] = ...) -> None: ...

class ScanRequest(_message.Message):
    __slots__ = ("keyspace", "key", "prefix", "start", "end", "limit", "reverse", "cursor", "r", "r_level", "timeout_ms")
    KEYSPACE_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    REVERSE_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    R_FIELD_NUMBER: _ClassVar[int]
    R_LEVEL_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    keyspace: str
    key: bytes
    prefix: bytes
    start: bytes
    end: bytes
    limit: int
    reverse: bool
    cursor: bytes
    r: int
    r_level: Level
    timeout_ms: int
    def __init__(self, keyspace: _Optional[str] = ..., key: _Optional[bytes] = ..., prefix: _Optional[bytes] = ..., start: _Optional[bytes] = ..., end: _Optional[bytes] = ..., limit: _Optional[int] = ..., reverse: bool = ..., cursor: _Optional[bytes] = ..., r: _Optional[int] = ..., r_level: _Optional[_Union[Level, str]] = ..., timeout_ms: _Optional[int] = ...) -> None: ...

class ScanEntry(_message.Message):
    __slots__ = ("key", "sort", "siblings", "context")
    KEY_FIELD_NUMBER: _ClassVar[int]
    SORT_FIELD_NUMBER: _ClassVar[int]
    SIBLINGS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    sort: bytes
    siblings: _containers.RepeatedCompositeFieldContainer[Sibling]
    context: bytes
    def __init__(self, key: _Optional[bytes] = ..., sort: _Optional[bytes] = ..., siblings: _Optional[_Iterable[_Union[Sibling, _Mapping]]] = ..., context: _Optional[bytes] = ...) -> None: ...

class ScanResponse(_message.Message):
    __slots__ = ("entries", "cursor")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[ScanEntry]
    cursor: bytes
    def __init__(self, entries: _Optional[_Iterable[_Union[ScanEntry, _Mapping]]] = ..., cursor: _Optional[bytes] = ...) -> None: ...

class BatchItem(_message.Message):
    __slots__ = ("put", "get", "delete")
    PUT_FIELD_NUMBER: _ClassVar[int]
    GET_FIELD_NUMBER: _ClassVar[int]
    DELETE_FIELD_NUMBER: _ClassVar[int]
    put: PutRequest
    get: GetRequest
    delete: DeleteRequest
    def __init__(self, put: _Optional[_Union[PutRequest, _Mapping]] = ..., get: _Optional[_Union[GetRequest, _Mapping]] = ..., delete: _Optional[_Union[DeleteRequest, _Mapping]] = ...) -> None: ...

class BatchRequest(_message.Message):
    __slots__ = ("keyspace", "items", "timeout_ms")
    KEYSPACE_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    keyspace: str
    items: _containers.RepeatedCompositeFieldContainer[BatchItem]
    timeout_ms: int
    def __init__(self, keyspace: _Optional[str] = ..., items: _Optional[_Iterable[_Union[BatchItem, _Mapping]]] = ..., timeout_ms: _Optional[int] = ...) -> None: ...

class RequestError(_message.Message):
    __slots__ = ("code", "message", "failure", "retry_delay_ms")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    RETRY_DELAY_MS_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    failure: _failure_pb2.Failure
    retry_delay_ms: int
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., failure: _Optional[_Union[_failure_pb2.Failure, _Mapping]] = ..., retry_delay_ms: _Optional[int] = ...) -> None: ...

class BatchStatus(_message.Message):
    __slots__ = ("put", "get", "delete", "error")
    PUT_FIELD_NUMBER: _ClassVar[int]
    GET_FIELD_NUMBER: _ClassVar[int]
    DELETE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    put: PutResponse
    get: GetResponse
    delete: DeleteResponse
    error: RequestError
    def __init__(self, put: _Optional[_Union[PutResponse, _Mapping]] = ..., get: _Optional[_Union[GetResponse, _Mapping]] = ..., delete: _Optional[_Union[DeleteResponse, _Mapping]] = ..., error: _Optional[_Union[RequestError, _Mapping]] = ...) -> None: ...

class BatchResponse(_message.Message):
    __slots__ = ("statuses",)
    STATUSES_FIELD_NUMBER: _ClassVar[int]
    statuses: _containers.RepeatedCompositeFieldContainer[BatchStatus]
    def __init__(self, statuses: _Optional[_Iterable[_Union[BatchStatus, _Mapping]]] = ...) -> None: ...

class SessionRequest(_message.Message):
    __slots__ = ("id", "put", "get", "delete")
    ID_FIELD_NUMBER: _ClassVar[int]
    PUT_FIELD_NUMBER: _ClassVar[int]
    GET_FIELD_NUMBER: _ClassVar[int]
    DELETE_FIELD_NUMBER: _ClassVar[int]
    id: int
    put: PutRequest
    get: GetRequest
    delete: DeleteRequest
    def __init__(self, id: _Optional[int] = ..., put: _Optional[_Union[PutRequest, _Mapping]] = ..., get: _Optional[_Union[GetRequest, _Mapping]] = ..., delete: _Optional[_Union[DeleteRequest, _Mapping]] = ...) -> None: ...

class SessionResponse(_message.Message):
    __slots__ = ("id", "put", "get", "delete", "error")
    ID_FIELD_NUMBER: _ClassVar[int]
    PUT_FIELD_NUMBER: _ClassVar[int]
    GET_FIELD_NUMBER: _ClassVar[int]
    DELETE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    id: int
    put: PutResponse
    get: GetResponse
    delete: DeleteResponse
    error: RequestError
    def __init__(self, id: _Optional[int] = ..., put: _Optional[_Union[PutResponse, _Mapping]] = ..., get: _Optional[_Union[GetResponse, _Mapping]] = ..., delete: _Optional[_Union[DeleteResponse, _Mapping]] = ..., error: _Optional[_Union[RequestError, _Mapping]] = ...) -> None: ...
