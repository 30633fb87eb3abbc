"""Real processes for the tests, from the binary that QUORAL_BIN names.

`quoral dev` makes the directory and the configurations; then each node is a process of its own, so that a test can
end one, stop it and bring it back.
"""

from __future__ import annotations

import os
import pathlib
import signal
import socket
import subprocess
import tempfile
import threading
import time
import unittest
from typing import Callable, Dict, List, Optional, Sequence

import quoral

READY_WITHIN = 60.0


def free_base(nodes: int) -> int:
    """A base port such that all ports of the nodes are free: below those that the system gives to connections."""
    slots: Sequence[int] = range(30_280, 32_700, 40)
    first = os.getpid() % len(slots)
    for base in [*slots[first:], *slots[:first]]:
        try:
            for node in range(nodes):
                for port in range(base + 10 * node, base + 10 * node + 3):
                    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                        with socket.socket(socket.AF_INET, kind) as tried:
                            tried.bind(("127.0.0.1", port))
            return base
        except OSError:
            continue
    raise AssertionError("no free ports")


def binary() -> str:
    named = os.environ.get("QUORAL_BIN")
    if named:
        return named
    if os.environ.get("QUORAL_REQUIRE_PYTHON") == "1":
        raise AssertionError("QUORAL_BIN names no binary")
    raise unittest.SkipTest("QUORAL_BIN names no binary")


class Cluster:
    def __init__(self, nodes: int = 3) -> None:
        self.binary = binary()
        self.base = free_base(nodes)
        self.endpoints = [f"127.0.0.1:{self.base + 10 * node}" for node in range(nodes)]
        self._folder = tempfile.TemporaryDirectory(prefix="quoral-python-")
        self.folder = pathlib.Path(self._folder.name) / "cluster"
        self._nodes: Dict[int, subprocess.Popen[bytes]] = {}
        self._make(nodes)
        for node in range(nodes):
            self.start(node)
        self.await_alive()

    def _make(self, nodes: int) -> None:
        command = [self.binary, "dev", "--nodes", str(nodes), "--base-port", str(self.base), "--dir"]
        dev = subprocess.Popen(
            [*command, str(self.folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        late = threading.Timer(READY_WITHIN, dev.kill)
        late.start()
        try:
            assert dev.stdout is not None
            said: List[bytes] = []
            for line in dev.stdout:
                said.append(line)
                if line.strip() == b"ready":
                    break
            else:
                raise AssertionError(f"`quoral dev` did not get ready: {b''.join(said).decode()}")
            dev.terminate()
            dev.communicate(timeout=READY_WITHIN)
        finally:
            late.cancel()
            dev.kill()

    def start(self, node: int) -> None:
        with open(self.folder / f"n{node + 1}" / "test.log", "ab") as log:
            command = [self.binary, "serve", "--config", str(self.folder / f"n{node + 1}" / "quoral.toml")]
            self._nodes[node] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def kill(self, node: int) -> None:
        process = self._nodes.pop(node)
        process.kill()
        process.wait()

    def freeze(self, node: int) -> None:
        self._nodes[node].send_signal(signal.SIGSTOP)

    def thaw(self, node: int) -> None:
        self._nodes[node].send_signal(signal.SIGCONT)

    def await_alive(self, keyspace: str = "default") -> None:
        """Until each running node takes a write that needs all replicas."""
        for node in self._nodes:
            with quoral.Client(self.endpoints[node], timeout=2, routing=False) as client:
                await_true(
                    lambda: attempt(lambda: client.put("await alive", "", keyspace=keyspace, w="all")) is None
                )

    def stop(self) -> None:
        for process in self._nodes.values():
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in self._nodes.values():
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._folder.cleanup()


def attempt(call: Callable[[], object]) -> Optional[quoral.QuoralError]:
    """The error that a call ends with, if it does."""
    try:
        call()
    except quoral.QuoralError as error:
        return error
    return None


def await_true(what: Callable[[], object], within: float = READY_WITHIN) -> None:
    end = time.monotonic() + within
    while not what():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.05)
