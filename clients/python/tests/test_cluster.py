"""Both clients against three real processes: what a user may rely on, with nodes that die, hang and lose answers."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
import unittest
import urllib.request
import uuid
from typing import Any, List, Optional

import grpc

import quoral
from cluster import Cluster, attempt, await_true
from quoral import Applied, Delete, Get, Got, Overloaded, Put, Written, aio
from quoral import _route as route
from quoral.v1 import cluster_pb2, cluster_pb2_grpc

cluster: Cluster


def setUpModule() -> None:
    global cluster
    cluster = Cluster()


def tearDownModule() -> None:
    cluster.stop()


def name(of: str) -> str:
    """A key or keyspace of this test alone."""
    return f"{of}-{uuid.uuid4().hex[:8]}"


def forwarded() -> int:
    """Requests that the nodes have passed on."""
    total = 0
    for endpoint in cluster.endpoints:
        host, port = endpoint.split(":")
        with urllib.request.urlopen(f"http://{host}:{int(port) + 2}/metrics") as page:
            for line in page.read().decode().splitlines():
                if line.startswith("quoral_requests_forwarded"):
                    total += int(float(line.split()[-1]))
    return total


class LossyProxy:
    """Stands before a node. When told to, it passes requests on and ends the connection in place of the answer."""

    def __init__(self, target: str) -> None:
        host, port = target.split(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.lose = threading.Event()
        self.lost = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            node = socket.create_connection(self._target)
            threading.Thread(target=self._pass, args=(client, node, False), daemon=True).start()
            threading.Thread(target=self._pass, args=(node, client, True), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        try:
            while data := source.recv(65_536):
                if answers and self.lose.is_set():
                    # Time for the node to finish, so that it is an answer that is lost.
                    time.sleep(0.3)
                    self.lost += 1
                    self.lose.clear()
                    break
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        source.close()

    def close(self) -> None:
        self._listener.close()


class Blocking(unittest.TestCase):
    client: quoral.Client

    def setUp(self) -> None:
        self.client = quoral.Client(cluster.endpoints, timeout=10)
        self.addCleanup(self.client.close)

    def make(self, conflicts: str = "siblings", **policy: Any) -> str:
        made = self.client.create_keyspace(name("made"), conflicts=conflicts, timeout=30, **policy)
        # Each node learns of it by itself.
        for endpoint in cluster.endpoints:
            with quoral.Client(endpoint, routing=False) as one:
                await_true(lambda: any(k.name == made.name for k in one.keyspaces()))
        return made.name

    def test_put_get_delete(self) -> None:
        key, value = name("ä"), bytes(range(256))
        self.assertEqual(self.client.get(key).value, None)
        put = self.client.put(key, value)
        self.assertEqual((put.w, put.sloppy), (2, False))
        got = self.client.get(key.encode())
        self.assertEqual((got.found, got.value, got.r), (True, value, 2))
        self.assertEqual(got.siblings[0].stamp, put.stamp)
        self.assertEqual(self.client.put(key, "text", w="all").acks, 3)
        self.assertEqual(self.client.get(key, r=1).value, b"text")
        self.client.delete(key)
        self.assertFalse(self.client.get(key).found)
        self.client.put(key, "", ttl=60)
        got = self.client.get(key)
        self.assertEqual(got.value, b"", "an empty value is a value")
        self.assertGreater(got.siblings[0].expires_at_ms, 0)

    def test_scan(self) -> None:
        key = name("room")
        for sort in ("a1", "a2", "b", "c"):
            self.client.put(key, sort.upper(), sort=sort)
        self.assertEqual([e.sort for e in self.client.scan(key)], [b"a1", b"a2", b"b", b"c"])
        self.assertEqual([e.value for e in self.client.scan(key, prefix="a")], [b"A1", b"A2"])
        self.assertEqual([e.sort for e in self.client.scan(key, start="a2", end="c")], [b"a2", b"b"])
        self.assertEqual([e.sort for e in self.client.scan(key, reverse=True, limit=3)], [b"c", b"b", b"a2"])
        self.assertEqual(list(self.client.scan(key, limit=0)), [])
        self.assertEqual(list(self.client.scan(name("none"))), [])

    def test_a_long_scan_goes_on_behind_each_page(self) -> None:
        keyspace, value = self.make("lww"), "x" * 200_000
        puts = [Put(f"{n:05}", "") for n in range(1_000)]
        puts += [Put("big", value, sort=f"{n:02}") for n in range(30)]
        while puts:
            # A busy node may refuse an item, which is surely not applied then.
            outcomes = self.client.batch(puts[:1_000], keyspace=keyspace, timeout=30)
            refused = [put for put, outcome in zip(puts, outcomes) if isinstance(outcome, Overloaded)]
            bad = [o for o in outcomes if isinstance(o, Exception) and not isinstance(o, Overloaded)]
            self.assertEqual(bad, [])
            puts = refused + puts[1_000:]
        found = [(e.key, e.sort) for e in self.client.scan(keyspace=keyspace)]
        self.assertEqual((len(found), len(set(found))), (1_030, 1_030))
        big = [e.sort for e in self.client.scan("big", keyspace=keyspace, reverse=True)]
        self.assertEqual(big, [b"%02d" % n for n in reversed(range(30))])

    def test_batch(self) -> None:
        key = name("batch")
        outcomes = self.client.batch(
            [Put(key, "v"), Get(key), Put("", "v"), Delete(key), Get(key), Get(key, keyspace="nowhere")]
        )
        kinds = [type(outcome) for outcome in outcomes]
        self.assertEqual(kinds, [Written, Got, quoral.InvalidArgument, Written, Got, quoral.NotFound])
        assert isinstance(outcomes[1], Got) and isinstance(outcomes[4], Got)
        self.assertEqual((outcomes[1].value, outcomes[4].found), (b"v", False))
        with self.assertRaises(quoral.InvalidArgument):
            self.client.batch([])

    def test_siblings_and_update(self) -> None:
        keyspace, key = self.make(), name("cart")
        self.client.put(key, "milk", keyspace=keyspace)
        self.client.put(key, "eggs", keyspace=keyspace)
        got = self.client.get(key, keyspace=keyspace)
        with self.assertRaises(quoral.Conflict) as raised:
            got.value
        self.assertEqual(sorted(raised.exception.values), [b"eggs", b"milk"])
        written = self.client.update(key, lambda values: b",".join(sorted(values)), keyspace=keyspace)
        self.assertEqual(self.client.get(key, keyspace=keyspace).value, b"eggs,milk")
        self.client.delete(key, keyspace=keyspace, context=written.context)
        self.assertFalse(self.client.get(key, keyspace=keyspace).found)
        seen: List[List[bytes]] = []

        def merge(values: List[bytes]) -> bytes:
            seen.append(values)
            return b""

        self.client.update(name("new"), merge, keyspace=keyspace)
        self.assertEqual(seen, [[]])

    def test_refusals(self) -> None:
        refused = attempt(lambda: self.client.put("", "v"))
        assert isinstance(refused, quoral.InvalidArgument)
        self.assertIs(refused.applied, Applied.NO)
        self.assertIn("key", refused.message)
        for size, words in [((1 << 20) + 1, "1048577"), (65 << 20, "larger than max")]:
            refused = attempt(lambda: self.client.put("k", b"v" * size))
            assert isinstance(refused, quoral.InvalidArgument), refused
            self.assertIn(words, refused.message)
        refused = attempt(lambda: self.client.get("k", keyspace="nowhere"))
        assert isinstance(refused, quoral.NotFound)
        self.assertEqual(refused.keyspace, "nowhere")
        refused = attempt(lambda: self.client.create_keyspace("default"))
        self.assertIsInstance(refused, quoral.AlreadyExists)

    def test_a_session_reads_its_writes(self) -> None:
        keyspace = self.make("lww", r=1, w=1)
        with self.client.session() as session:
            for n in range(50):
                session.put("k", str(n), keyspace=keyspace)
                self.assertEqual(session.get("k", keyspace=keyspace).value, b"%d" % n)
            token = session.token
        self.assertTrue(token)
        with quoral.Client(cluster.endpoints[::-1]) as other, other.session(token) as session:
            self.assertEqual(session.get("k", keyspace=keyspace).value, b"49")

    def test_a_request_id_is_for_one_write(self) -> None:
        key, request_id = name("once"), uuid.uuid4().bytes
        first = self.client.put(key, "v", request_id=request_id)
        again = self.client.put(key, "v", request_id=request_id)
        self.assertEqual(first.stamp, again.stamp)
        with self.assertRaises(quoral.InvalidArgument):
            self.client.put(key, "other", request_id=request_id)

    def lossy_put(self, keyspace: str, others: List[str], **fields: Any) -> Optional[quoral.QuoralError]:
        """Blind puts until an answer to one may have been lost; at most one value each must be there."""
        proxy = LossyProxy(cluster.endpoints[0])
        self.addCleanup(proxy.close)
        with quoral.Client([proxy.endpoint, *others], routing=False) as client:
            while True:
                key = name("lossy")
                client.get(key, keyspace=keyspace)
                proxy.lose.set()
                error = attempt(lambda: client.put(key, "v", keyspace=keyspace, **fields))
                values = self.client.get(key, keyspace=keyspace).values
                self.assertIn(values, [[b"v"], []] if error else [[b"v"]])
                if proxy.lost:
                    return error

    def test_a_lost_answer_leaves_one_value(self) -> None:
        keyspace = self.make()
        for others in ([], [], cluster.endpoints[1:]):
            self.assertIsNone(self.lossy_put(keyspace, others), "it is sent again, and applied once")

    def test_without_an_id_a_lost_answer_is_told(self) -> None:
        keyspace = self.make()
        # Now and then the connection ends a moment before the put, which goes over a new one then.
        errors = [self.lossy_put(keyspace, [], request_id=None) for _ in range(4)]
        self.assertIn(quoral.Unknown, [type(error) for error in errors])
        for error in errors:
            self.assertTrue(error is None or error.applied is Applied.MAYBE, error)

    def test_threads_share_a_client(self) -> None:
        key = name("threads")
        errors: List[Optional[quoral.QuoralError]] = []

        def work(thread: int) -> None:
            for n in range(20):
                errors.append(attempt(lambda: self.client.put(key, "v", sort=f"{thread}:{n}")))

        threads = [threading.Thread(target=work, args=(thread,)) for thread in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(errors, [None] * 160)
        self.assertEqual(len(list(self.client.scan(key))), 160)

    def test_with_a_node_killed_all_goes_on(self) -> None:
        keyspace, node = self.make(), 1
        self.addCleanup(cluster.await_alive)
        self.addCleanup(cluster.start, node)
        for n in range(60):
            if n == 10:
                cluster.kill(node)
            # Blind, so that one applied twice would show.
            self.client.put(f"{n}", f"{n}", keyspace=keyspace)
        for n in range(60):
            self.assertEqual(self.client.get(f"{n}", keyspace=keyspace).value, b"%d" % n)

    def test_with_a_node_that_hangs_all_goes_on(self) -> None:
        keyspace, node = self.make(), 2
        self.addCleanup(cluster.await_alive)
        self.addCleanup(cluster.thaw, node)
        for n in range(20):
            if n == 5:
                cluster.freeze(node)
            began = time.monotonic()
            self.client.put(f"{n}", f"{n}", keyspace=keyspace, timeout=10)
            self.assertLess(time.monotonic() - began, 14)
        self.assertEqual(
            [self.client.get(f"{n}", keyspace=keyspace).value for n in range(20)],
            [b"%d" % n for n in range(20)],
        )

    def test_with_too_few_nodes_the_error_says_so(self) -> None:
        key = name("few")

        def back() -> None:
            for node in (0, 1):
                cluster.start(node)
            cluster.await_alive()

        self.addCleanup(back)
        for node in (0, 1):
            cluster.kill(node)

        def put() -> Optional[quoral.QuoralError]:
            began = time.monotonic()
            error = attempt(lambda: self.client.put(key, "v", timeout=2))
            self.assertLess(time.monotonic() - began, 5)
            # Until the deaths are noticed, what was sent may come to something.
            assert isinstance(error, (quoral.Unavailable, quoral.Unknown)), error
            self.assertIs(
                error.applied, Applied.NO if isinstance(error, quoral.Unavailable) else Applied.MAYBE
            )
            return error

        await_true(lambda: isinstance(put(), quoral.Unavailable))
        error = put()
        assert error is not None
        self.assertEqual((error.code, error.required), ("UNAVAILABLE", 2))

    def test_with_no_node_the_error_is_definite(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            nobody = f"127.0.0.1:{taken.getsockname()[1]}"
        with quoral.Client(nobody, timeout=1) as client:
            began = time.monotonic()
            self.assertIsInstance(attempt(lambda: client.put("k", "v")), quoral.Unavailable)
            self.assertLess(time.monotonic() - began, 4)


class Routing(unittest.TestCase):
    def test_a_position_is_what_the_server_says(self) -> None:
        with grpc.insecure_channel(cluster.endpoints[0]) as channel:
            stub = cluster_pb2_grpc.ClusterStub(channel)
            for key in (b"k", b"cart:42", b"\xff\x00", b"x" * 64, b"y" * 1_023, b"z" * 1_024):
                said = stub.Explain(cluster_pb2.ExplainRequest(keyspace="default", key=key))
                position = route.position("default", key)
                self.assertEqual(f"{position:016x}", said.position)
                self.assertEqual(route.partition(position, 256), said.partition)

    def test_a_client_of_one_node_sends_to_all_homes_and_nothing_is_passed_on(self) -> None:
        with quoral.Client(cluster.endpoints[0], timeout=10) as client:
            client.put(name("first"), "v")
            await_true(lambda: client._core._table is not None)
            self.assertEqual(sorted(client._core.names), sorted(cluster.endpoints))
            before = forwarded()
            for number in range(60):
                client.put(name(f"home {number}"), "v")
            self.assertEqual(forwarded(), before)
        with quoral.Client(cluster.endpoints[0], timeout=10, routing=False) as client:
            for number in range(60):
                client.put(name(f"any {number}"), "v")
            self.assertGreater(forwarded(), before, "without it some are")


class Asyncio(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self) -> None:
        self.client = aio.Client(cluster.endpoints, timeout=10)
        self.addAsyncCleanup(self.client.close)

    async def test_all_methods(self) -> None:
        key = name("aio")
        await self.client.put(key, "v")
        self.assertEqual((await self.client.get(key)).value, b"v")

        async def merge(values: List[bytes]) -> bytes:
            await asyncio.sleep(0)
            return b"+".join([*values, b"w"])

        await self.client.update(key, merge)
        await self.client.update(key, lambda values: b"+".join([*values, b"x"]))
        self.assertEqual((await self.client.get(key)).value, b"v+w+x")
        await self.client.delete(key)
        self.assertFalse((await self.client.get(key)).found)
        kinds = [type(o) for o in await self.client.batch([Put(key, "v"), Get(key), Put("", "")])]
        self.assertEqual(kinds, [Written, Got, quoral.InvalidArgument])
        for sort in "abc":
            await self.client.put(key, sort, sort=sort)
        self.assertEqual([e.sort async for e in self.client.scan(key, reverse=True, limit=2)], [b"c", b"b"])
        self.assertIn("default", [k.name for k in await self.client.keyspaces()])
        with self.assertRaises(quoral.NotFound):
            await self.client.get(key, keyspace="nowhere")
        with self.assertRaises(quoral.AlreadyExists):
            await self.client.create_keyspace("default")

    async def test_many_at_once(self) -> None:
        key = name("many")
        await asyncio.gather(*[self.client.put(key, "v", sort=str(n)) for n in range(300)])
        self.assertEqual(len([e async for e in self.client.scan(key)]), 300)

    async def test_a_session_takes_turns(self) -> None:
        async with self.client.session() as session:
            await asyncio.gather(*[session.put(name("turn"), "v") for _ in range(20)])
            late = [session.put("k", "v", timeout=0.0001) for _ in range(3)]
            for error in await asyncio.gather(*late, return_exceptions=True):
                self.assertIsInstance(error, (quoral.Unavailable, quoral.Unknown))
            await session.put("k", "after")
            self.assertEqual((await session.get("k")).value, b"after")

    async def test_a_cancelled_request_ends(self) -> None:
        cluster.freeze(0)
        self.addAsyncCleanup(asyncio.to_thread, cluster.await_alive)
        self.addCleanup(cluster.thaw, 0)
        async with aio.Client(cluster.endpoints[0], routing=False) as client:
            with self.assertRaises(asyncio.TimeoutError):
                await asyncio.wait_for(client.put("k", "v", timeout=30), 0.5)

    async def test_it_learns_the_nodes_and_finds_home(self) -> None:
        async with aio.Client(cluster.endpoints[:1]) as client:
            await client.put(name("first"), "v")
            while len(client._core.names) < 3 or client._core._table is None:
                await asyncio.sleep(0.02)
            await client.put(name("home"), "v")
            self.assertEqual(len(client._channels), 3)

    async def test_a_lost_answer_leaves_one_value(self) -> None:
        made = await self.client.create_keyspace(name("made"), conflicts="siblings", timeout=30)
        proxy = LossyProxy(cluster.endpoints[0])
        self.addCleanup(proxy.close)
        key = name("lossy")
        async with aio.Client([proxy.endpoint], routing=False) as client:
            while not any(k.name == made.name for k in await client.keyspaces()):
                await asyncio.sleep(0.05)
            while proxy.lost == 0:
                proxy.lose.set()
                await client.put(key, "v", keyspace=made.name)
                got = await self.client.get(key, keyspace=made.name)
                self.assertEqual(got.values, [b"v"])
                await self.client.delete(key, keyspace=made.name, context=got.context)


if __name__ == "__main__":
    unittest.main()
