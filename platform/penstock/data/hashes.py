"""64-bit hashes that stay the same over processes and releases: statistics on disk hold them.

A text's hash is that of `pandas.util.hash_array`: SipHash-2-4 (Aumasson, Bernstein: "SipHash: a
fast short-input PRF", 2012) with pandas' key, mixed as a number is. Texts of one length are hashed
side by side in numpy, which makes no Python object of any of them.
"""

from typing import Any, TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray

Hashes: TypeAlias = NDArray[np.uint64]

_KEY = np.frombuffer(b"0123456789123456", dtype="<u8")
_START = np.frombuffer(b"uespemosmodnarodarenegylsetybdet", dtype="<u8")
_WORD_BYTES = 8
_MAX_BYTES = 128
# What a round touches stays in the core's cache.
_TEXTS_PER_BLOCK = 4096


def mix(bits: Hashes) -> Hashes:
    """splitmix64's finalizer (Steele, Lea, Flood 2014): every input bit moves every output bit."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def hash_texts(texts: pl.Series) -> Hashes:
    """Hash every text, in the order in which they come; none of them may be null."""
    sizes = texts.str.len_bytes().to_numpy()
    lengths, counts = np.unique(sizes, return_counts=True)
    if not len(lengths) or lengths[-1] > _MAX_BYTES or counts.mean() < _TEXTS_PER_BLOCK:
        return _by_pandas(texts)
    if len(lengths) == 1:
        return mix(_of_one_length(texts, int(lengths[0])))
    hashes = np.empty(len(texts), dtype=np.uint64)
    for length in lengths:
        here = sizes == length
        hashes[here] = _of_one_length(texts.filter(pl.Series(here)), int(length))
    return mix(hashes)


def _by_pandas(texts: pl.Series) -> Hashes:
    import pandas as pd

    objects = texts.to_numpy().astype(object)
    return np.asarray(pd.util.hash_array(objects, categorize=False), dtype=np.uint64)


def _of_one_length(texts: pl.Series, num_bytes: int) -> Hashes:
    # The older layout has the bytes of all texts behind each other.
    column: Any = texts.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
    _, ends, content = column.buffers()
    first = np.frombuffer(ends, dtype=np.int64)[column.offset]
    size = len(texts) * num_bytes
    given = np.frombuffer(content or b"", dtype=np.uint8)[first : first + size]
    rows = given.reshape(len(texts), num_bytes)
    hashes = np.empty(len(rows), dtype=np.uint64)
    width = (num_bytes // _WORD_BYTES + 1) * _WORD_BYTES
    for at in range(0, len(rows), _TEXTS_PER_BLOCK):
        block = rows[at : at + _TEXTS_PER_BLOCK]
        # The last word: the bytes that are left over, and the length on top.
        padded = np.zeros((len(block), width), dtype=np.uint8)
        padded[:, :num_bytes] = block
        padded[:, -1] = num_bytes
        hashes[at : at + len(block)] = _siphash(np.ascontiguousarray(padded.view("<u8").T))
    return hashes


def _siphash(words: Hashes) -> Hashes:
    """Hash n texts of w words, which come as [w, n]."""
    num_texts = words.shape[1]
    a, b, c, d = (np.full(num_texts, _KEY[i % 2] ^ _START[i], np.uint64) for i in range(4))
    spare = np.empty(num_texts, dtype=np.uint64)
    for word in words:
        d ^= word
        _rounds(2, a, b, c, d, spare)
        a ^= word
    c ^= np.uint64(0xFF)
    _rounds(4, a, b, c, d, spare)
    return a ^ b ^ c ^ d


def _rounds(number: int, a: Hashes, b: Hashes, c: Hashes, d: Hashes, spare: Hashes) -> None:
    for _ in range(number):
        for x, y, bits in ((a, b, 13), (c, d, 16), (a, d, 21), (c, b, 17)):
            x += y
            _rotate(y, bits, spare)
            y ^= x
            if bits in {13, 17}:
                _rotate(x, 32, spare)


def _rotate(x: Hashes, bits: int, spare: Hashes) -> None:
    np.right_shift(x, np.uint64(64 - bits), out=spare)
    np.left_shift(x, np.uint64(bits), out=x)
    x |= spare
