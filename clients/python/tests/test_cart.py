"""The example is run as the README has it."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import unittest

from cluster import binary, free_base

CART = pathlib.Path(__file__).resolve().parents[1] / "examples" / "cart.py"


class TheCart(unittest.TestCase):
    def test_keeps_what_both_sides_added(self) -> None:
        command = [sys.executable, str(CART), "--quoral", binary(), "--base-port", str(free_base(4))]
        ended = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=240
        )
        said = ended.stdout.decode()
        self.assertEqual(ended.returncode, 0, said)
        self.assertIn("sees ['bread'], adds milk", said)
        self.assertIn("sees ['bread'], adds eggs", said)
        self.assertIn("two carts, neither lost: [['bread', 'eggs'], ['bread', 'milk']]", said)
        self.assertIn("merges them: ['bread', 'eggs', 'milk']", said)


if __name__ == "__main__":
    unittest.main()
