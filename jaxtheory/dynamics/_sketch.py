"""A few kilobytes that stand for an iterate: random projections of what moved."""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

from jaxtheory._types import TrainState
from jaxtheory.batching import check_function, check_number
from jaxtheory.dynamics._held import check_known
from jaxtheory.dynamics._sketch_maps import MAPS, VARIANCES, sketch_vectors
from jaxtheory.dynamics._vectors import as_vectors, moved


def sketch(
    *,
    dim: int = 1024,
    seed: int = 0,
    kind: str = "count",
    of: Callable[[TrainState], PyTree] | None = None,
) -> "Sketch":
    r"""A measurement of where training is: a random projection of what moved.

    A linear map $S$ from $\mathbb{R}^p$ to ``dim`` numbers, applied to the displacement
    $v$ = ``params - initial_params``, with

    $$\mathbb{E}\|S v\|^2 = \|v\|^2, \qquad
      \operatorname{Var}\|S v\|^2 \le \frac{c}{\text{dim}} \|v\|^4$$

    for every $v$, with ``c = 2``, and 2.2 for ``"count"``. The map is the same for
    every step and every run with the same `seed`, `kind` and number of parameters, so
    ``|S v_s - S v_t|`` estimates the distance between any two iterates, with relative
    standard deviation at most ``sqrt(c / dim) / 2`` (2.3 % at 1,024), whatever ``p``:
    `Sketch.relative_error`. What that means for a path is `Sketch.path_length_error`.

    - ``"count"`` (CountSketch): every coordinate gets a random sign and is added to one
      of ``dim`` buckets. Buckets are assigned by cutting the coordinates into blocks of
      ``dim`` and turning each block by its own random offset: two coordinates of
      different blocks then meet with probability ``1 / dim`` and two of the same block
      never, which is all that the variance needs. Folding without the offsets would put
      a neuron's strided column in a few buckets. More than ``128 dim`` coordinates are
      first folded in some 64 longer blocks, each added at its own random place, which
      costs a tenth of the variance: one pass over the parameters, leaf by leaf.
    - ``"srht"`` (subsampled randomised Hadamard transform): random signs, an
      orthonormal Walsh-Hadamard transform of the vector padded to a power of two, and
      one row from each of ``dim`` equal parts of it. ``p log p`` operations.
    - ``"gaussian"``: independent normal entries of variance ``1/dim``. ``dim p`` random
      numbers in each call: for small networks, and to check the others by.

    Args:
        dim: Length of a sketch.
        seed: Seed of the map. Sketches are comparable only within a seed.
        kind: ``"count"``, ``"srht"`` or ``"gaussian"``.
        of: ``of(state) -> pytree of arrays``: what is sketched in place of the
            displacement; some leaves of it, a gradient, a momentum.

    Returns:
        The measurement, ``measure(state) -> Float[Array, "dim"]`` in float32. Equal
        arguments give equal (hashable) measurements.

    Raises:
        ValueError: `dim` is not a positive integer, `seed` not one of 32 bits, `kind`
            no known word, or `of` no function.

    Memory:
        ``"count"``: some ``128 dim`` numbers, or a sixteenth of the parameters where
        that is more. ``"srht"``: about four float32 copies of the parameters while it
        runs; ``"gaussian"``: one, and 4 MiB of its rows. ``4 dim`` bytes a record. What
        is random is drawn anew in each call: as a constant it would be part of the
        compiled program.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from jaxtheory import dynamics
        >>> state = dynamics.init(optax.sgd(0.1), jnp.zeros(5000))
        >>> state = state._replace(params=state.params.at[7].set(-3.0))
        >>> measure = dynamics.sketch(dim=64)
        >>> path = measure(state)
        >>> path.shape, float(jnp.linalg.norm(path)), round(measure.relative_error, 3)
        ((64,), 3.0, 0.093)

    References:
        Charikar, Chen and Farach-Colton (2002), Finding frequent items in data streams.
        Weinberger et al., arXiv:0902.2206, Lemma 2 (unbiasedness and variance of the
        signed hash). Tropp, arXiv:1011.1595 (the subsampled randomised Hadamard
        transform).
    """
    is_whole = lambda a: isinstance(a, int | np.integer) and not isinstance(a, bool)
    if not is_whole(dim) or dim < 1:
        raise ValueError(f"`dim` must be a positive integer, but was {dim!r}.")
    if not is_whole(seed) or not 0 <= seed < 2**32:
        # Without x64, JAX cuts a larger seed off: two of them would be one.
        raise ValueError(
            f"`seed` must be an integer from 0 to 2**32 - 1, but was {seed!r}."
        )
    if not isinstance(kind, str) or kind not in MAPS:
        raise ValueError(f"`kind` must be one of {[*MAPS]}, but was {kind!r}.")
    if of is not None:
        check_function("of", of)
    return Sketch(int(dim), int(seed), kind, of)


@dataclasses.dataclass(frozen=True)
class Sketch:
    """What `sketch` returns: a value, so equal ones do not retrace.

    Attributes:
        dim: Length of a sketch.
        seed: Seed of the map.
        kind: Kind of the map.
        of: What of the state is sketched; None for the displacement.
    """

    dim: int
    seed: int
    kind: str = "count"
    of: Callable[[TrainState], PyTree] | None = None

    def __call__(self, state: TrainState) -> Float[Array, " dim"]:
        """Sketch the displacement of a state, or what `of` returns of it."""
        return self.project(moved(state) if self.of is None else self.of(state))

    def project(self, tree: PyTree) -> Float[Array, " dim"]:
        """Apply the map to the vector of a pytree's leaves.

        Args:
            tree: Real arrays, ``p`` numbers in all. They are taken in float32.

        Returns:
            The sketch.

        Raises:
            ValueError: There are no numbers in it, or they are not real.
        """
        seed = np.uint32(self.seed)
        return sketch_vectors(self.kind, self.dim, as_vectors(tree), seed)

    @property
    def relative_error(self) -> float:
        """Relative standard deviation of a distance, at most: ``sqrt(c / dim) / 2``."""
        return (VARIANCES[self.kind] / self.dim) ** 0.5 / 2

    def path_length_error(self, effective_rank: float = 1.0) -> float:
        r"""Relative standard deviation of the length of a path, and so of its ``E_1``.

        .. math:: \frac{1}{2} \sqrt{\frac{c}{\text{dim} \cdot r}}

        The errors of two steps are as correlated as their squared cosine, so that a
        path whose steps point everywhere is measured better than one distance. Rescaled
        by the exact step lengths (``step_lengths=`` of `topology.measure_path`) most
        of it is gone.

        Args:
            effective_rank: Effective rank ``r`` of the steps, from `effective_rank`; 1
                (a straight path) is the worst case.

        Returns:
            The relative error.

        Raises:
            ValueError: `effective_rank` is not a number of at least 1.
        """
        check_known(effective_rank=effective_rank)
        check_number(
            "effective_rank", effective_rank, lambda r: r >= 1, "a number of at least 1"
        )
        return self.relative_error / float(effective_rank) ** 0.5

    def effective_rank(self, points: Float[ArrayLike, "r dim"]) -> float:
        r"""Estimate the effective rank of a path's steps from its sketches.

        .. math:: r = \frac{(\operatorname{tr} M)^2}{\operatorname{tr} M^2}, \qquad
            M = \sum_t \frac{\delta_t \delta_t^\top}{|\delta_t|}

        with ``delta_t`` the steps: each direction counts by the length gone in it. What
        the sketch itself adds to ``tr M^2`` is subtracted.

        Args:
            points: Sketches of successive iterates.

        Returns:
            The rank, from 1 to the number of steps that are not zero; NaN where a
            sketch is not finite.

        Raises:
            ValueError: `points` are not at least two sketches of this length, or do not
                move.
        """
        check_known(points=points)
        points = np.asarray(points, np.float64)
        if points.ndim != 2 or points.shape[0] < 2 or points.shape[1] != self.dim:
            raise ValueError(
                f"`points` must be at least two sketches [r, {self.dim}], but has "
                f"shape {points.shape}."
            )
        if not np.isfinite(points).all():
            return float("nan")
        steps = np.diff(points, axis=0)
        lengths = np.linalg.norm(steps, axis=1)
        steps, lengths = steps[lengths != 0], lengths[lengths != 0]
        if not lengths.size:
            raise ValueError(
                f"`points` must move, but all {len(points)} sketches are equal."
            )
        weighted = steps / np.sqrt(lengths)[:, None]
        tall = weighted.shape[0] > weighted.shape[1]
        gram = weighted.T @ weighted if tall else weighted @ weighted.T
        squared = lengths.sum() ** 2
        # E<Sa,Sb>^2 = <a,b>^2 + (|a|^2 |b|^2 + <a,b>^2) / dim, up to fourth powers.
        exact = ((gram**2).sum() - squared / self.dim) / (1 + 1 / self.dim)
        return float(np.clip(squared / max(exact, squared / lengths.size), 1, None))
