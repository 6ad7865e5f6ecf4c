"""Penalise the topology of the last iterates, kept in the model state."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PyTree

from jaxtheory._types import KeyArray, Objective, Params
from jaxtheory.batching import (
    check_count,
    check_function,
    check_key,
    check_number,
    check_params,
    check_word,
)
from jaxtheory.dynamics._held import check_known
from jaxtheory.dynamics._sketch import Sketch
from jaxtheory.dynamics._step import _checked
from jaxtheory.dynamics.topology import (
    append_point,
    e_alpha,
    minimum_spanning_tree,
    ph_dimension_penalty,
)


class TopologicalMemory(NamedTuple):
    """The model state of a `TopologicalRegulariser`: the iterates before this one.

    Attributes:
        model_state: That of the objective that is penalised.
        start: The parameters that displacements are measured from.
        points: Displacements (or sketches of them) of the last ``window - 1`` iterates,
            in a ring; the start, zero, where there were fewer.
        distances: Their Euclidean distances.
        num_seen: How many iterates were written: the next goes to row ``num_seen %
            (window - 1)``.
    """

    model_state: PyTree
    start: PyTree
    points: Float[Array, "m d"]
    distances: Float[Array, "m m"]
    num_seen: Int[Array, ""]


def topological_regulariser(
    objective: Objective,
    *,
    strength: float,
    window: int = 100,
    of: Literal["e_alpha", "ph_dimension"] = "e_alpha",
    alpha: float = 1.0,
    sketch: Sketch | None = None,
) -> "TopologicalRegulariser":
    r"""Add to an objective a topological measure of the last iterates.

    .. math:: L(w_t) + \lambda \, E_\alpha(w_{t-m+1}, \ldots, w_t), \quad
        E_\alpha = \sum_{e \in \mathrm{MST}} |e|^\alpha

    over the ``m`` last iterates (`window`), or ``lambda`` times their persistent
    homology dimension as `topology.ph_dimension_penalty` has it. The iterates before
    this one are history: the gradient reaches the newest alone. They are the model
    state of training, which the regulariser makes::

        objective = topological_regulariser(plain, strength=0.5)
        model_state = objective.init(params)
        state = dynamics.init(optimizer, params, model_state=model_state)

    What to expect. Along a smooth path the newest iterate hangs on the one before by a
    single edge. Then the gradient of ``E_1`` is the unit vector of the last step, a
    pull back of one length however short the step is: steps that are not long against
    the learning rate times `strength` are overshot, and the path becomes longer, not
    shorter. With ``alpha=2`` the pull is ``2 lambda`` times the step: of SGD,
    heavy-ball momentum with the factor ``-2 eta lambda``. ``E_1`` of a path is nearly
    its length (`topology.measure_path`): that is what is penalised.

    ``"e_alpha"`` counts from the first step: points that coincide add nothing.
    ``"ph_dimension"`` (published, with ``strength=0.5`` and ``window=100``) is off
    until the window is full, and in a step where two iterates coincide, of which there
    is no dimension. It takes one random subset of each size ``m / 10, 2 m / 10, ...``
    below ``m``.

    Args:
        objective: What is trained, ``objective(params, model_state, batch, key) ->
            (scalar, model_state)``.
        strength: ``lambda``, not negative. Compiled in, as are all options.
        window: Number ``m`` of iterates, the newest included: at least 3; for
            ``"ph_dimension"`` at least 30.
        of: ``"e_alpha"`` or ``"ph_dimension"``.
        alpha: Positive power of the edge lengths.
        sketch: The map of `dynamics.sketch`: iterates are kept as sketches of ``dim``
            numbers. The value of the penalty is right to a few per cent; its gradient
            is ``S^T S`` times that of whole iterates: right in the mean over seeds,
            but some ``sqrt(p / dim)`` times as long, the rest in directions that the
            seed has chosen. None keeps them whole.

    Returns:
        The penalised objective, with its method `init`. Equal arguments give equal
        objectives.

    Raises:
        ValueError: An option is out of range. When called: the model state is not one
            from `init`, or not for these parameters.

    Memory:
        ``m p`` numbers in the state, twice while a step is taken: at the published
        window a hundred times the parameters, where Adam keeps twice. With `sketch`
        ``m dim + p``. A step costs ``m p`` operations for the distances (with `sketch`
        ``m dim`` and the map), and ``m^2`` in ``m`` sequential steps for the tree.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> flat = lambda w, model_state, batch, key: (jnp.sum(0 * w), model_state)
        >>> objective = topological_regulariser(flat, strength=2.0, window=3)
        >>> memory, keys = objective.init(jnp.zeros(2)), map(jax.random.key, range(2))
        >>> _, memory = objective(jnp.array([3.0, 4.0]), memory, None, next(keys))
        >>> value, _ = objective(jnp.array([3.0, 5.0]), memory, None, next(keys))
        >>> float(value)  # 2 (5 + 1)
        12.0

    References:
        Birdal et al., arXiv:2111.13171 (the regulariser; its public code never makes
        the list that it appends to); Andreeva et al., arXiv:2407.08723 (E_alpha).
    """
    check_function("objective", objective)
    check_known(strength=strength, alpha=alpha)
    not_negative = lambda s: 0 <= s < math.inf
    check_number("strength", strength, not_negative, "finite, at least 0")
    check_number("alpha", alpha, lambda a: 0 < a < math.inf, "positive and finite")
    check_word("of", of, ("e_alpha", "ph_dimension"))
    window = check_count(window=window, at_least=3 if of == "e_alpha" else 30)
    if not isinstance(sketch, Sketch | None):
        raise ValueError(
            "`sketch` must be what `dynamics.sketch(dim=...)` returns, or None, but is "
            f"of type {type(sketch).__name__}."
        )
    return TopologicalRegulariser(
        objective, float(strength), window, of, float(alpha), sketch
    )


@dataclasses.dataclass(frozen=True)
class TopologicalRegulariser:
    """What `topological_regulariser` returns: an objective that remembers.

    Attributes:
        objective: What is penalised.
        strength: Factor of the penalty.
        window: Number of iterates.
        of: What of them is penalised.
        alpha: Power of the edge lengths.
        sketch: The map of the iterates, or None.
    """

    objective: Objective
    strength: float
    window: int
    of: str
    alpha: float
    sketch: Sketch | None

    def init(self, params: Params, model_state: PyTree = ()) -> TopologicalMemory:
        """The model state in which training begins.

        Args:
            params: Initial parameters.
            model_state: Initial model state of the objective that is penalised.

        Returns:
            A memory of nothing but the start.

        Raises:
            ValueError: `params` is empty or not floating-point.
        """
        check_params(params)
        # A copy: training gives the memory of its arguments back.
        start = jax.tree.map(lambda a: jnp.array(a, jnp.result_type(a)), params)
        point = self._point(start, start)
        num = self.window - 1
        return TopologicalMemory(
            model_state,
            start,
            jnp.zeros((num, *point.shape), point.dtype),
            jnp.zeros((num, num), point.dtype),
            jnp.zeros((), jnp.int32),
        )

    def __call__(
        self, params: PyTree, model_state: Any, batch: PyTree, key: KeyArray
    ) -> tuple[Float[Array, ""], TopologicalMemory]:
        """The penalised objective, and the memory with this iterate in it."""
        check_key(key)
        memory = self._check_memory(model_state, params)
        key_own, key_subsets = jax.random.split(key)
        inner = memory.model_state
        loss, inner = _checked(self.objective, params, inner, batch, key_own)
        point = self._point(params, memory.start)
        distances = append_point(memory.distances, memory.points, point)
        penalty = self._penalty(distances, memory.num_seen, key_subsets)
        after = _remember(memory, inner, point, distances)
        return loss + self.strength * penalty.astype(loss.dtype), after

    def _penalty(self, distances, num_seen, key):
        if self.of == "e_alpha":
            tree = minimum_spanning_tree(distances)
            return e_alpha(tree.lengths, alpha=self.alpha)
        itself = np.eye(self.window, dtype=bool)
        ready = jnp.all((distances > 0) | itself) & (num_seen >= self.window - 1)
        # Not even computed from what has no logarithm: its gradient would be NaN.
        safe = jnp.where(ready, distances, (~itself).astype(distances.dtype))
        penalty = ph_dimension_penalty(
            safe, key=key, sizes=self._sizes(), alpha=self.alpha
        )
        return jnp.where(ready, penalty, 0)

    def _sizes(self) -> Sequence[int]:
        step = self.window // 10
        return tuple(range(step, 10 * step, step))

    def _point(self, params, start):
        """Where the parameters are: the displacement, or its sketch."""
        moved = jax.tree.map(_difference, params, start)
        if self.sketch is None:
            return ravel_pytree(moved)[0]
        return self.sketch.project(moved)

    def _check_memory(self, memory, params):
        """The model state; raise unless `init` made it for these parameters."""
        made = isinstance(memory, TopologicalMemory)
        if made:
            expected = jax.eval_shape(self.init, params, memory.model_state)
            made = _shapes(expected) == _shapes(memory)
        if not made:
            raise ValueError(
                "`model_state` must be what `init` of this regulariser made for these "
                f"parameters, but has structure {jax.tree.structure(memory)} and "
                f"shapes {[np.shape(a) for a in jax.tree.leaves(memory)]}. Pass "
                "`model_state=objective.init(params)` to `dynamics.init`."
            )
        return memory


def _remember(memory, model_state, point, distances):
    """The memory with one more iterate, in place of the oldest."""
    point, distances = jax.lax.stop_gradient((point, distances))
    slot = memory.num_seen % memory.points.shape[0]
    row = distances[-1, :-1].at[slot].set(0)
    return TopologicalMemory(
        model_state,
        memory.start,
        memory.points.at[slot].set(point),
        memory.distances.at[slot].set(row).at[:, slot].set(row),
        memory.num_seen + 1,
    )


def _difference(now, start):
    """What moved, in at least single precision."""
    dtype = jnp.promote_types(jnp.result_type(now), jnp.float32)
    return jnp.asarray(now, dtype) - jnp.asarray(start, dtype)


def _shapes(tree):
    return jax.tree.structure(tree), [np.shape(leaf) for leaf in jax.tree.leaves(tree)]
