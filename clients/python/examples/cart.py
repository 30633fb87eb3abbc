"""The shopping cart of the Dynamo paper: two devices add to one cart through two sides of a partition.

With a cluster of its own, four processes on this machine, of which it lets first one half run and then the other:

    python cart.py --quoral target/release/quoral

With a cluster of yours, whose network you cut and mend when it asks you to:

    python cart.py --left 10.0.0.1:7400,10.0.0.2:7400 --right 10.0.1.1:7400,10.0.1.2:7400

Each side needs two nodes. What makes it work is the keyspace: `sloppy` lets a side take the write though most of the
cart's home replicas are on the other, and `siblings` keeps both carts until somebody who has seen both has merged them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import pathlib
import subprocess
import tempfile
import time
import uuid
from typing import Dict, Iterator, List, Protocol, Sequence, Set

import quoral

KEYSPACE = "carts"
#: For each request. Long, since nodes are started and the cluster finds itself again.
PATIENCE = 60.0


class World(Protocol):
    """The cluster with its network."""

    @property
    def left(self) -> Sequence[str]: ...
    @property
    def right(self) -> Sequence[str]: ...

    def only_left(self) -> None: ...
    def only_right(self) -> None: ...
    def whole(self) -> None: ...


def items(cart: bytes) -> Set[str]:
    return set(json.loads(cart))


def merged(carts: List[bytes]) -> Set[str]:
    """What is in any of the carts. (So an item taken out on one side alone comes back, as in the paper.)"""
    return set().union(*map(items, carts))


def packed(cart: Set[str]) -> bytes:
    return json.dumps(sorted(cart)).encode()


def say(text: str) -> None:
    print(text, flush=True)


def add(device: str, item: str, cart: str, endpoints: Sequence[str]) -> None:
    """Reads all carts there are, adds to their union, and writes it in place of those that were read."""
    # Without routing: a device reaches the nodes of its own side and no others.
    with quoral.Client(endpoints, timeout=PATIENCE, routing=False) as client:
        seen: List[List[str]] = []

        def merge(carts: List[bytes]) -> bytes:
            seen.append(sorted(merged(carts)))
            return packed(merged(carts) | {item})

        written = client.update(cart, merge, keyspace=KEYSPACE)
        how = "fallbacks stood in for replicas out of reach" if written.sloppy else "by home replicas alone"
        say(f"   the {device} sees {seen[-1]}, adds {item}: taken by {written.acks} nodes, {how}")


def shop(world: World) -> None:
    cart = f"cart:{uuid.uuid4().hex[:8]}"
    everyone = [*world.left, *world.right]

    say(f"1. The network is whole. A cart, {cart}, with bread in it.")
    with quoral.Client(everyone, timeout=PATIENCE, routing=False) as client:
        with contextlib.suppress(quoral.AlreadyExists):
            client.create_keyspace(KEYSPACE, conflicts="siblings", n=3, r=2, w=2, sloppy=True)
    for endpoint in everyone:
        # Each node learns of the keyspace by itself.
        with quoral.Client(endpoint, timeout=PATIENCE, routing=False) as client:
            while KEYSPACE not in [keyspace.name for keyspace in client.keyspaces()]:
                time.sleep(0.1)
    with quoral.Client(everyone, timeout=PATIENCE, routing=False) as client:
        client.put(cart, packed({"bread"}), keyspace=KEYSPACE, w="all")

    say("2. The network parts. The phone reaches the left side only.")
    world.only_left()
    add("phone", "milk", cart, world.left)

    say("3. The laptop reaches the right side only, where nobody has heard of the milk.")
    world.only_right()
    add("laptop", "eggs", cart, world.right)

    say("4. The network is whole again.")
    world.whole()
    with quoral.Client(everyone, timeout=PATIENCE, routing=False) as client:
        while True:
            got = client.get(cart, keyspace=KEYSPACE)
            if {"milk", "eggs"} <= merged(got.values):
                break
            time.sleep(0.1)
        say(f"   two carts, neither lost: {sorted(sorted(items(value)) for value in got.values)}")
        client.update(cart, lambda carts: packed(merged(carts)), keyspace=KEYSPACE)
        final = client.get(cart, keyspace=KEYSPACE).value
        assert final is not None and items(final) == {"bread", "milk", "eggs"}, final
        say(f"   whoever reads next merges them: {sorted(items(final))}")


class Yours:
    """A cluster that somebody else runs: asks for what is to happen to its network."""

    def __init__(self, left: Sequence[str], right: Sequence[str]) -> None:
        self.left, self.right = left, right

    def only_left(self) -> None:
        input("   Cut the two sides from each other, and press Enter. ")

    def only_right(self) -> None:
        pass

    def whole(self) -> None:
        input("   Mend the network, and press Enter. ")


class Own:
    """Four processes on this machine. Nodes that don't run stand for nodes out of reach."""

    def __init__(self, quoral_binary: str, folder: pathlib.Path, base: int) -> None:
        self._binary, self._folder = quoral_binary, folder
        self._running: Dict[int, subprocess.Popen[bytes]] = {}
        endpoints = [f"127.0.0.1:{base + 10 * node}" for node in range(4)]
        self.left, self.right = endpoints[:2], endpoints[2:]
        # `dev` makes the directories and configurations. Then each node is started by itself.
        command = [quoral_binary, "dev", "--nodes", "4", "--base-port", str(base), "--dir", str(folder)]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as dev:
            assert dev.stdout is not None
            if not any(line.strip() == b"ready" for line in dev.stdout):
                raise SystemExit("`quoral dev` did not get ready")
            dev.terminate()
        self.whole()

    def only_left(self) -> None:
        self._run({0, 1})

    def only_right(self) -> None:
        self._run({2, 3})

    def whole(self) -> None:
        self._run({0, 1, 2, 3})

    def _run(self, wanted: Set[int]) -> None:
        """Kills the others first: the two sides never meet."""
        for node in set(self._running) - wanted:
            process = self._running.pop(node)
            process.kill()
            process.wait()
        for node in sorted(wanted - set(self._running)):
            with open(self._folder / f"n{node + 1}" / "cart.log", "ab") as log:
                config = str(self._folder / f"n{node + 1}" / "quoral.toml")
                command = [self._binary, "serve", "--config", config]
                self._running[node] = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )

    def stop(self) -> None:
        self._run(set())


@contextlib.contextmanager
def own_world(binary: str, base: int) -> Iterator[Own]:
    with tempfile.TemporaryDirectory(prefix="quoral-cart-") as folder:
        world = Own(binary, pathlib.Path(folder) / "cluster", base)
        try:
            yield world
        finally:
            world.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description="The shopping cart of the Dynamo paper.")
    parser.add_argument("--quoral", metavar="BINARY", help="start four nodes of its own with this binary")
    parser.add_argument("--base-port", type=int, default=8400, help="first port of the first of them [8400]")
    parser.add_argument("--left", metavar="HOST:PORT,…", help="the nodes that the phone reaches")
    parser.add_argument("--right", metavar="HOST:PORT,…", help="the nodes that the laptop reaches")
    args = parser.parse_args()
    if args.quoral:
        with own_world(args.quoral, args.base_port) as world:
            shop(world)
    elif args.left and args.right:
        shop(Yours(args.left.split(","), args.right.split(",")))
    else:
        parser.error("--quoral BINARY, or --left and --right, must be given")


if __name__ == "__main__":
    main()
