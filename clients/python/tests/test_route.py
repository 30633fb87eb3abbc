"""Where requests go: hashes, the table, and the choice, without a network."""

from __future__ import annotations

import unittest
from typing import Any, List

from quoral import _blake3 as blake3
from quoral import _route as route
from quoral._core import Call, Core
from quoral._decide import Broken, Endpoints
from quoral._route import Table
from quoral.errors import Applied, Details
from quoral.types import Get, Put
from quoral.v1 import cluster_pb2, kv_pb2

#: blake3's own test vectors: the length of the input, whose bytes are 0 to 250 again and again, and the first bytes.
VECTORS = {
    0: "af1349b9f5f9a1a6a0404dea36dcc949",
    1: "2d3adedff11b61f14c886e35afa03673",
    1023: "10108970eeda3eb932baac1428c7a216",
    1024: "42214739f095a406f3fc83deb889744a",
    1025: "d00278ae47eb27b34faecf67b4fe263f",
    2048: "e776b6028c7cd22a4d0ba182a8bf6220",
    2049: "5f4d72f40d7a5f82b15ca2b2e44b1de3",
    3072: "b98cb0ff3623be03326b373de6b90952",
    5121: "628bd2cb2004694adaab7bbd778a25df",
}


def status(*nodes: str, state: str = "alive") -> cluster_pb2.StatusResponse:
    listed = [cluster_pb2.NodeStatus(node_id=node, client_address=f"{node}:1", state=state) for node in nodes]
    return cluster_pb2.StatusResponse(nodes=listed)


def layout(*owners: str, version: int = 1) -> cluster_pb2.LayoutResponse:
    """A partition for each text, whose letters are its owners."""
    listed = [cluster_pb2.PartitionOwners(owners=list(each)) for each in owners]
    return cluster_pb2.LayoutResponse(layout_version=version, partitions=listed)


def keyspaces(n: int = 2) -> cluster_pb2.ListKeyspacesResponse:
    return cluster_pb2.ListKeyspacesResponse(keyspaces=[cluster_pb2.KeyspaceInfo(name="default", n=n)])


class TheHash(unittest.TestCase):
    def test_is_blake3(self) -> None:
        for length, begins in VECTORS.items():
            data = bytes(at % 251 for at in range(length))
            self.assertEqual(blake3.plain(data).hex()[:32], begins, length)
            self.assertEqual(blake3.digest(data), blake3.plain(data))

    def test_partitions_are_the_top_bits(self) -> None:
        self.assertEqual(route.partition(2**64 - 1, 256), 255)
        self.assertEqual(route.partition(2**63, 16), 8)
        self.assertEqual(route.partition(5, 1), 0)
        self.assertEqual([route.partition(5, count) for count in (0, 3, 255)], [-1, -1, -1])


class TheTable(unittest.TestCase):
    def test_the_first_n_owners_are_homes(self) -> None:
        table = Table(status("a", "b", "c"), layout("abc"), keyspaces())
        self.assertEqual(table.homes("default", b"k"), ["a:1", "b:1"])
        self.assertEqual(table.homes("", b"k"), ["a:1", "b:1"], "no name is the default's")
        self.assertEqual(table.homes("other", b"k"), [])
        self.assertTrue(table.is_complete)

    def test_who_is_down_is_no_home(self) -> None:
        nodes = status("b", "c")
        nodes.nodes.extend(status("a", state="down").nodes)
        table = Table(nodes, layout("abc"), keyspaces(3))
        self.assertEqual(table.homes("default", b"k"), ["b:1", "c:1"])
        self.assertFalse(table.is_complete)

    def test_what_makes_no_sense_leads_nowhere(self) -> None:
        self.assertEqual(Table(status("a"), layout("a", "a", "a"), keyspaces()).homes("default", b"k"), [])
        self.assertEqual(Table(status(), layout(), keyspaces()).homes("default", b"k"), [])


class TheChoice(unittest.TestCase):
    def test_homes_come_first_while_they_are_well(self) -> None:
        endpoints = Endpoints(3)
        self.assertEqual([endpoints.pick(0.0, set(), [2, 1]) for _ in range(3)], [2, 2, 2])
        self.assertEqual(endpoints.pick(0.0, {2}, [2, 1]), 1)
        self.assertEqual(endpoints.pick(0.0, {1, 2}, [2, 1]), 0)
        endpoints.failed(2, 0.0)
        self.assertEqual(endpoints.pick(0.5, set(), [2, 1]), 1)
        self.assertEqual(endpoints.pick(0.5, set(), [9]), 1, "one that was never reached is not asked")

    def test_who_was_reached_takes_turns(self) -> None:
        endpoints = Endpoints(1)
        endpoints.add(2)
        endpoints.add(2)
        self.assertEqual([endpoints.pick(0.0, set()) for _ in range(3)], [0, 2, 0])


class TheRefresh(unittest.TestCase):
    def setUp(self) -> None:
        self.now = 0.0
        self.core = Core(["a:1"], 5.0, lambda: self.now, lambda: 0.0)
        self.layout = layout("ab" if partition_is_low(b"k") else "ba", "ba" if partition_is_low(b"k") else "ab")

    def refresh(self, reached: bool = True) -> List[Call]:
        """Runs it, over nodes a and b; b is reached or not. What was asked."""
        self.assertTrue(self.core.refresh_is_due())
        self.assertFalse(self.core.refresh_is_due(), "one at a time")
        asked: List[Call] = []
        op = self.core.refresh()
        answers: List[Any] = [status("a", "b"), self.layout, keyspaces()]
        answers.append(status("a", "b") if reached else Broken("UNAVAILABLE", "", Applied.NO, sent=False))
        effect = next(op)
        try:
            for answer in answers:
                assert isinstance(effect, Call)
                asked.append(effect)
                effect = op.send(answer)
        except StopIteration:
            pass
        return asked

    def first_of(self, op: Any) -> str:
        effect = next(op)
        assert isinstance(effect, Call)
        return self.core.names[effect.endpoint]

    def put_goes_to(self) -> str:
        return self.first_of(self.core.put(Put("k", "v"), self.now + 5.0))

    def test_requests_go_home_once_it_is_known(self) -> None:
        self.assertEqual(self.put_goes_to(), "a:1")
        self.layout = layout("b", "b")
        asked = self.refresh()
        self.assertEqual([self.core.names[call.endpoint] for call in asked], ["a:1", "a:1", "a:1", "b:1"])
        self.assertEqual([self.put_goes_to() for _ in range(3)], ["b:1"] * 3)
        self.assertEqual(self.first_of(self.core.page(kv_pb2.ScanRequest(key=b"k"), b"", None, 5.0)), "b:1")

    def test_reads_take_turns_among_the_homes(self) -> None:
        self.refresh()
        gets = {self.first_of(self.core.get(Get("k"), 5.0)) for _ in range(4)}
        self.assertEqual(gets, {"a:1", "b:1"})
        self.assertEqual(len({self.put_goes_to() for _ in range(4)}), 1, "writes have one first home")

    def test_an_address_that_leads_nowhere_is_not_used(self) -> None:
        self.layout = layout("b", "b")
        self.refresh(reached=False)
        self.assertEqual([self.put_goes_to() for _ in range(3)], ["a:1"] * 3)

    def test_it_is_done_again_in_time(self) -> None:
        self.refresh()
        self.now = route.AGE_MOST - 0.1
        self.assertFalse(self.core.refresh_is_due())
        op = self.core.put(Put("k", "v"), 60.0)
        next(op)
        op.send(Broken("UNAVAILABLE", "", Applied.NO, details=Details(layout_version=7)))
        self.now += route.AGE_FAILED
        self.assertTrue(self.core.refresh_is_due())

    def test_one_that_fails_leaves_what_was_known(self) -> None:
        self.layout = layout("b", "b")
        self.refresh()
        self.now = 100.0
        self.assertTrue(self.core.refresh_is_due())
        op = self.core.refresh()
        next(op)
        with self.assertRaises(StopIteration):
            op.send(Broken("UNIMPLEMENTED", "", Applied.NO))
        self.assertFalse(self.core.refresh_is_due())
        self.assertEqual(self.put_goes_to(), "b:1")

    def test_without_routing_nobody_asks(self) -> None:
        self.assertFalse(Core(["a:1"], 5.0, routing=False).refresh_is_due())


def partition_is_low(key: bytes) -> bool:
    return route.partition(route.position("default", key), 2) == 0


if __name__ == "__main__":
    unittest.main()
