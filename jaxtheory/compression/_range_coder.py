"""An arithmetic coder of whole numbers: symbols in as many bits as they are worth.

Martin's range coder: an interval of 64-bit integers is cut in proportion to how often
the symbols occur, and leading bytes that no later symbol can change go out. Integers
alone: what is decoded is what was encoded, on every machine.
"""

import itertools
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

_BITS = 64
_FULL = 1 << _BITS
# The interval is kept wider than this by moving bytes out.
_LEAST = 1 << (_BITS - 8)
# Totals up to this lose less than 2^-24 of the interval to rounding.
MOST = 1 << 32


class Encoder:
    """Writes symbols; `finish` returns the bytes."""

    def __init__(self):
        self._out = bytearray()
        self._low, self._range = 0, _FULL - 1

    def number(self, value: int, limit: int) -> None:
        """Write a number from 0 to ``limit - 1``, all equally likely."""
        self._put(value, 1, limit)

    def sequence(self, symbols: Int[np.ndarray, " m"], num_levels: int) -> None:
        """Write how often each of the levels occurs, then the symbols in their order.

        Args:
            symbols: Numbers from 0 to ``num_levels - 1``; the reader knows how many.
            num_levels: How many different ones there are.
        """
        counts = np.bincount(symbols, minlength=num_levels).tolist()
        left = total = len(symbols)
        for count in counts[:-1]:
            self.number(count, left + 1)
            left -= count
        below = list(itertools.accumulate(counts, initial=0))
        for symbol in symbols.tolist():
            self._put(below[symbol], counts[symbol], total)

    def finish(self) -> bytes:
        """The shortest string of bytes that decodes to what was written."""
        # A reader goes on with zeros: the number in the interval with most of them.
        bits, above = _BITS, self._low + self._range
        while (value := -(-self._low >> bits) << bits) >= above:
            bits -= 8
        self._carry(value)
        self._out += (value % _FULL).to_bytes(_BITS // 8, "big")
        return bytes(self._out).rstrip(b"\0")

    def _put(self, below, count, total):
        """Keep the part of the interval from ``below`` on, ``count / total`` of it."""
        width = self._range // total
        self._low += width * below
        self._range = width * count
        self._carry(self._low)
        self._low %= _FULL
        while self._range < _LEAST:
            self._out.append(self._low >> (_BITS - 8))
            self._low = (self._low << 8) % _FULL
            self._range <<= 8

    def _carry(self, value):
        """What overflows adds one to the bytes that are out."""
        if value >= _FULL:
            at = len(self._out) - 1
            while self._out[at] == 255:
                self._out[at] = 0
                at -= 1
            self._out[at] += 1


class Decoder:
    """Reads what an `Encoder` wrote; ask for the same things in the same order."""

    def __init__(self, data: bytes):
        size = _BITS // 8
        self._next = itertools.chain(data[size:], itertools.repeat(0))
        self._code = int.from_bytes(data[:size].ljust(size, b"\0"), "big")
        self._range = _FULL - 1

    def number(self, limit: int) -> int:
        """Read a number from 0 to ``limit - 1``."""
        value = min(self._code // (self._range // limit), limit - 1)
        self._take(value, 1, limit)
        return value

    def sequence(self, size: int, num_levels: int) -> Int[np.ndarray, " m"]:
        """Read ``size`` symbols below ``num_levels``."""
        counts, left = [], size
        for _ in range(num_levels - 1):
            counts.append(self.number(left + 1))
            left -= counts[-1]
        counts.append(left)
        below = list(itertools.accumulate(counts, initial=0))
        return np.array(
            [self._symbol(counts, below, size) for _ in range(size)], np.int64
        )

    def _symbol(self, counts: Sequence[int], below: Sequence[int], total: int) -> int:
        at = min(self._code // (self._range // total), total - 1)
        symbol = bisect_right(below, at) - 1
        self._take(below[symbol], counts[symbol], total)
        return symbol

    def _take(self, below, count, total):
        width = self._range // total
        self._code -= width * below
        self._range = width * count
        while self._range < _LEAST:
            self._code = (self._code << 8) | next(self._next)
            self._range <<= 8
