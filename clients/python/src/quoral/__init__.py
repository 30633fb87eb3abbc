"""A client of Quoral, a key-value database that stays writable and readable while machines die.

    import quoral

    with quoral.Client("127.0.0.1:7400,127.0.0.1:7410") as client:
        client.put("cart:42", '["milk"]')
        print(client.get("cart:42").value)

`quoral.aio.Client` has the same methods for asyncio.
"""

from . import aio as aio
from .client import Client, Session
from .errors import (
    AlreadyExists,
    Applied,
    Conflict,
    InvalidArgument,
    NotFound,
    Overloaded,
    QuoralError,
    Unavailable,
    Unknown,
)
from .types import Delete, Entry, Get, Got, Item, Keyspace, Put, Sibling, Written

__all__ = [
    "AlreadyExists",
    "Applied",
    "Client",
    "Conflict",
    "Delete",
    "Entry",
    "Get",
    "Got",
    "InvalidArgument",
    "Item",
    "Keyspace",
    "NotFound",
    "Overloaded",
    "Put",
    "QuoralError",
    "Session",
    "Sibling",
    "Unavailable",
    "Unknown",
    "Written",
    "aio",
]
