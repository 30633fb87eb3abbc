from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Applied(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    APPLIED_UNSPECIFIED: _ClassVar[Applied]
    NO: _ClassVar[Applied]
    MAYBE: _ClassVar[Applied]
APPLIED_UNSPECIFIED: Applied
NO: Applied
MAYBE: Applied

class Failure(_message.Message):
    __slots__ = ("applied", "required", "received", "alive", "layout_version", "silent")
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    ALIVE_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_VERSION_FIELD_NUMBER: _ClassVar[int]
    SILENT_FIELD_NUMBER: _ClassVar[int]
    applied: Applied
    required: int
    received: int
    alive: int
    layout_version: int
    silent: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, applied: _Optional[_Union[Applied, str]] = ..., required: _Optional[int] = ..., received: _Optional[int] = ..., alive: _Optional[int] = ..., layout_version: _Optional[int] = ..., silent: _Optional[_Iterable[str]] = ...) -> None: ...
