"""Messages and errors, without a network; and that the two clients are the same."""

from __future__ import annotations

import inspect
import random
import unittest
from typing import Any, Dict

from google.protobuf import any_pb2, duration_pb2

import quoral
from quoral import Applied, aio
from quoral import _wire as wire
from quoral.v1 import failure_pb2, kv_pb2


def field(number: int, data: bytes) -> bytes:
    """An encoded field that has a length, below 16 KiB."""
    return bytes([number << 3 | 2, len(data) & 0x7F | 0x80, len(data) >> 7]) + data


def status(*details: Any) -> bytes:
    """An encoded google.rpc.Status."""
    data = b"\x08\x0e" + field(2, b"message")
    for detail in details:
        packed = any_pb2.Any()
        if isinstance(detail, duration_pb2.Duration):
            packed.type_url = "type.googleapis.com/google.rpc.RetryInfo"
            packed.value = field(1, detail.SerializeToString())
        else:
            packed.Pack(detail)
        data += field(3, packed.SerializeToString())
    return data


FAILURE = failure_pb2.Failure(
    applied=failure_pb2.NO, required=2, received=1, alive=1, layout_version=7, silent=["a" * 200, "b"]
)


class Errors(unittest.TestCase):
    def test_the_details_are_read(self) -> None:
        data = status(kv_pb2.Sibling(), FAILURE, duration_pb2.Duration(seconds=1, nanos=250_000_000))
        self.assertEqual(wire.status_details(data), (FAILURE, 1.25))
        broken = wire.broken_call("RESOURCE_EXHAUSTED", "busy", data)
        self.assertEqual((broken.applied, broken.retry_after, broken.sent), (Applied.NO, 1.25, True))
        error = wire.error_of(broken, broken.applied, "default")
        assert isinstance(error, quoral.Overloaded)
        self.assertEqual((error.required, error.received, error.alive, error.layout_version), (2, 1, 1, 7))
        self.assertEqual((list(error.silent), error.retry_after), (["a" * 200, "b"], 1.25))

    def test_junk_is_no_detail(self) -> None:
        data, chance = status(FAILURE, duration_pb2.Duration(seconds=1)), random.Random(1)
        for cut in range(len(data)):
            wire.status_details(data[:cut])
        for _ in range(5_000):
            junk = bytearray(data)
            junk[chance.randrange(len(junk))] = chance.randrange(256)
            wire.status_details(bytes(junk))
            wire.status_details(chance.randbytes(chance.randrange(40)))
        self.assertEqual(wire.status_details(b"\xff" * 30), (None, None))

    def test_without_a_detail_a_write_may_have_been_applied(self) -> None:
        self.assertIs(wire.broken_call("UNAVAILABLE", "Socket closed", None).applied, Applied.MAYBE)
        self.assertIs(wire.broken_call("DEADLINE_EXCEEDED", "", b"").applied, Applied.MAYBE)
        maybe = failure_pb2.Failure(applied=failure_pb2.APPLIED_UNSPECIFIED)
        self.assertIs(wire.broken_call("INTERNAL", "", status(maybe)).applied, Applied.MAYBE)
        refused = wire.broken_call(
            "UNAVAILABLE", "failed to connect to all addresses; last error: refused", None
        )
        self.assertEqual((refused.applied, refused.sent), (Applied.NO, False))

    def test_each_code_has_its_class(self) -> None:
        for code, kind in [
            ("UNAVAILABLE", quoral.Unavailable),
            ("DEADLINE_EXCEEDED", quoral.Unavailable),
            ("RESOURCE_EXHAUSTED", quoral.Overloaded),
            ("INVALID_ARGUMENT", quoral.InvalidArgument),
            ("NOT_FOUND", quoral.NotFound),
            ("ALREADY_EXISTS", quoral.AlreadyExists),
            ("INTERNAL", quoral.QuoralError),
            ("UNIMPLEMENTED", quoral.QuoralError),
        ]:
            broken = wire.broken_call(code, "words", status(FAILURE))
            error = wire.error_of(broken, Applied.NO, "k")
            self.assertIs(type(error), kind)
            self.assertEqual((error.code, error.applied), (code, Applied.NO))
            self.assertIs(type(wire.error_of(broken, Applied.MAYBE, "k")), quoral.Unknown)

    def test_items_have_errors_of_their_own(self) -> None:
        error = kv_pb2.RequestError(code=8, message="busy", failure=FAILURE, retry_delay_ms=100)
        broken = wire.broken_item(error)
        self.assertEqual(
            (broken.code, broken.applied, broken.retry_after), ("RESOURCE_EXHAUSTED", Applied.NO, 0.1)
        )
        self.assertEqual(wire.broken_item(kv_pb2.RequestError(code=99)).code, "UNKNOWN")


class Messages(unittest.TestCase):
    def test_text_and_levels(self) -> None:
        put = wire.put_request(quoral.Put("ä", "ö", sort="ü", w="all", ttl=1.5, sloppy=False))
        self.assertEqual((put.key, put.value, put.sort), ("ä".encode(), "ö".encode(), "ü".encode()))
        self.assertEqual((put.WhichOneof("acks"), put.w_level, put.ttl_ms), ("w_level", kv_pb2.ALL, 1_500))
        self.assertTrue(put.HasField("sloppy") and not put.HasField("session"))
        get = wire.get_request(quoral.Get(b"k", r=1))
        self.assertEqual((get.WhichOneof("answers"), get.r, get.HasField("sloppy")), ("r", 1, False))
        self.assertIsNone(wire.delete_request(quoral.Delete("k")).WhichOneof("acks"))

    def test_bad_input_is_refused_before_it_is_sent(self) -> None:
        bad: Dict[str, Any]
        for bad in ({"w": "most"}, {"w": 0}, {"w": -1}, {"ttl": 0}, {"ttl": -1.0}):
            with self.assertRaises(quoral.InvalidArgument):
                wire.put_request(quoral.Put("k", "v", **bad))
        with self.assertRaises(quoral.InvalidArgument):
            quoral.Client([])
        with self.assertRaises(quoral.InvalidArgument):
            quoral.Client(timeout=0)

    def test_several_values_are_a_conflict(self) -> None:
        two = kv_pb2.GetResponse(
            found=True, context=b"c", siblings=[kv_pb2.Sibling(value=v) for v in (b"a", b"b")]
        )
        got = wire.got(two)
        self.assertEqual(got.values, [b"a", b"b"])
        with self.assertRaises(quoral.Conflict) as raised:
            got.value
        self.assertEqual((raised.exception.values, raised.exception.context), ([b"a", b"b"], b"c"))
        self.assertIsNone(wire.got(kv_pb2.GetResponse()).value)


class Both(unittest.TestCase):
    def test_the_clients_have_the_same_methods(self) -> None:
        for one, other in [(quoral.Client, aio.Client), (quoral.Session, aio.Session)]:
            names = [n for n, _ in inspect.getmembers(one, inspect.isfunction) if not n.startswith("_")]
            self.assertEqual(
                names, [n for n, _ in inspect.getmembers(other, inspect.isfunction) if n[0] != "_"]
            )
            self.assertIn("put", names)
            for name in names:
                mine, other_s = (inspect.signature(getattr(c, name)).parameters for c in (one, other))
                self.assertEqual(
                    [(p.name, p.kind, p.default) for p in mine.values()],
                    [(p.name, p.kind, p.default) for p in other_s.values()],
                    name,
                )


if __name__ == "__main__":
    unittest.main()
