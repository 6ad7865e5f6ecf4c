"""The shape of a HiGrad tree: threads, weights and what they have in common."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxtheory.batching import check_count


class Tree(NamedTuple):
    """A tree of segments of SGD; hashable, a static argument.

    Attributes:
        widths: Number of segments in each level, ``1, B_1, B_1 B_2, ...``.
        lengths: Steps of a segment of each level.
    """

    widths: tuple[int, ...]
    lengths: tuple[int, ...]

    @property
    def num_threads(self) -> int:
        """Paths from the root to a leaf."""
        return self.widths[-1]

    @property
    def num_steps(self) -> int:
        """Steps of all segments together."""
        return sum(w * n for w, n in zip(self.widths, self.lengths, strict=True))

    @property
    def weights(self) -> np.ndarray:
        """Share of each level in a thread's average: that of its steps in all.

        They make the variance of the average over threads the smallest, that of one
        average over all steps.
        """
        return np.multiply(self.widths, self.lengths) / self.num_steps

    def covariance(self) -> np.ndarray:
        """Of the threads, in units of the asymptotic variance of one step.

        Two threads share the segments up to where they part: the sum of
        ``weight^2 / length`` over these.
        """
        threads = np.arange(self.num_threads)
        total = np.zeros((self.num_threads, self.num_threads))
        levels = zip(self.widths, self.lengths, self.weights, strict=True)
        for width, length, weight in levels:
            segment = threads // (self.num_threads // width)
            total += (segment[:, None] == segment[None, :]) * weight**2 / length
        return total


def make_tree(
    splits: Any, lengths: Any, num_examples: int, batch_size: int, burn_in: int
) -> Tree:
    """The tree that uses each example at most once.

    Args:
        splits: Into how many each segment splits, level after level.
        lengths: Steps of a segment of each level, the root's first; None for equal
            ones, as many as there are examples for.
        num_examples: How many there are.
        batch_size: Examples a step.
        burn_in: Steps before the root.

    Returns:
        The tree.

    Raises:
        ValueError: An option is out of range, or there are too few examples.
    """
    if not isinstance(splits, Sequence) or not splits:
        raise ValueError(
            "`splits` must be a tuple of numbers, one for each level below the root, "
            f"such as (2, 2), but was {splits!r}."
        )
    splits = [check_count(at_least=2, splits=number) for number in splits]
    widths = tuple(math.prod(splits[:level]) for level in range(len(splits) + 1))
    most = num_examples // batch_size - burn_in
    if lengths is None:
        lengths = (most // sum(widths),) * len(widths)
    elif not isinstance(lengths, Sequence) or len(lengths) != len(widths):
        raise ValueError(
            f"`lengths` must have one entry for each of the {len(widths)} levels, the "
            f"root's first, but was {lengths!r}."
        )
    else:
        lengths = tuple(check_count(lengths=length) for length in lengths)
    tree = Tree(widths, lengths)
    if min(lengths) < 1 or tree.num_steps > most:
        raise ValueError(
            f"`data` must hold an example for each step of the tree, but {num_examples}"
            f" examples make {max(most, 0)} steps of {batch_size} after the burn-in, "
            f"and the segments need {max(tree.num_steps, sum(widths))}. Choose fewer "
            "`splits` or shorter `lengths`; examples used twice would make the "
            "intervals too short."
        )
    return tree
