"""The first bytes of blake3, in plain Python: where a key stands on the ring is the first 8 of them.

The package `blake3` is used instead if it is installed, which is faster: this takes a third of a millisecond for each
64 bytes, and needs nothing. Inputs here are a keyspace and a key: 1 089 bytes at most, so one chunk of 1 024 bytes and a
second short one. Longer inputs are hashed as well.
"""

from __future__ import annotations

import struct
from typing import Callable, List, Optional, Sequence, Tuple

_IV = (
    0x6A09E667,
    0xBB67AE85,
    0x3C6EF372,
    0xA54FF53A,
    0x510E527F,
    0x9B05688C,
    0x1F83D9AB,
    0x5BE0CD19,
)
_ORDER = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
#: Of each of the four mixes of columns, then of diagonals.
_MIXES = (
    (0, 4, 8, 12),
    (1, 5, 9, 13),
    (2, 6, 10, 14),
    (3, 7, 11, 15),
    (0, 5, 10, 15),
    (1, 6, 11, 12),
    (2, 7, 8, 13),
    (3, 4, 9, 14),
)
_BLOCK = 64
_CHUNK = 1024
_CHUNK_START, _CHUNK_END, _PARENT, _ROOT = 1, 2, 4, 8
_WORDS = struct.Struct("<16I")
_ALL = 0xFFFFFFFF


def _compress(chain: Sequence[int], block: bytes, counter: int, length: int, flags: int) -> Tuple[int, ...]:
    words: Sequence[int] = _WORDS.unpack(block.ljust(_BLOCK, b"\0"))
    v: List[int] = [*chain, *_IV[:4], counter & _ALL, counter >> 32, length, flags]
    for round_ in range(7):
        for i, (a, b, c, d) in enumerate(_MIXES):
            va, vb, vc, vd = v[a], v[b], v[c], v[d]
            va = (va + vb + words[2 * i]) & _ALL
            vd ^= va
            vd = (vd >> 16 | vd << 16) & _ALL
            vc = (vc + vd) & _ALL
            vb ^= vc
            vb = (vb >> 12 | vb << 20) & _ALL
            va = (va + vb + words[2 * i + 1]) & _ALL
            vd ^= va
            vd = (vd >> 8 | vd << 24) & _ALL
            vc = (vc + vd) & _ALL
            vb ^= vc
            vb = (vb >> 7 | vb << 25) & _ALL
            v[a], v[b], v[c], v[d] = va, vb, vc, vd
        if round_ < 6:
            words = [words[at] for at in _ORDER]
    return tuple(v[i] ^ v[i + 8] for i in range(8))


def _chunk(data: bytes, counter: int, last: int) -> Tuple[int, ...]:
    """The chaining value of a chunk; `last` is a flag of its last block."""
    chain: Tuple[int, ...] = _IV
    blocks = [data[at : at + _BLOCK] for at in range(0, len(data), _BLOCK)] or [b""]
    for i, block in enumerate(blocks):
        flags = _CHUNK_START if i == 0 else 0
        if i == len(blocks) - 1:
            flags |= _CHUNK_END | last
        chain = _compress(chain, block, counter, len(block), flags)
    return chain


def _tree(data: bytes, first: int, root: int) -> Tuple[int, ...]:
    if len(data) <= _CHUNK:
        return _chunk(data, first, root)
    # The left half is as large a power of two of chunks as leaves something to the right.
    left = 1 << ((len(data) - 1) // _CHUNK).bit_length() - 1
    cut = left * _CHUNK
    halves = _tree(data[:cut], first, 0) + _tree(data[cut:], first + left, 0)
    return _compress(_IV, _WORDS.pack(*halves), 0, _BLOCK, _PARENT | root)


def plain(data: bytes) -> bytes:
    """32 bytes, by the code above."""
    return struct.pack("<8I", *_tree(data, 0, _ROOT))


def _load() -> Optional[Callable[[bytes], bytes]]:
    try:
        from blake3 import blake3
    except ImportError:
        return None

    def digest(data: bytes) -> bytes:
        return bytes(blake3(data).digest())

    return digest


_fast = _load()
#: Whether hashing costs next to nothing.
IS_FAST = _fast is not None
digest: Callable[[bytes], bytes] = _fast or plain
