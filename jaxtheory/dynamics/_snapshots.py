"""Measurements of where training is: all of the parameters, or a few coordinates."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

from jaxtheory._types import Measurement, TrainState
from jaxtheory.batching import SelectFn, check_function, check_params, select_leaves
from jaxtheory.dynamics._held import Held, check_known
from jaxtheory.dynamics._vectors import as_vector, moved


def snapshots(select: SelectFn | None = None) -> Measurement:
    """A measurement of the parameters themselves, all or some of them.

    Args:
        select: ``select(path) -> bool`` of a leaf's path as `jax.tree_util.keystr`
            writes it, for example ``"['params']['Dense_0']['kernel']"``; None takes
            all.

    Returns:
        ``measure(state) -> params``, or with `select` a dict ``{path: leaf}``. Equal
        arguments give equal (hashable) measurements.

    Raises:
        ValueError: `select` is not a function; when called, it chooses nothing.

    Memory:
        One copy of what is selected for each record, on the host.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from jaxtheory import dynamics
        >>> params = {"w": jnp.ones(3), "b": jnp.zeros(())}
        >>> state = dynamics.init(optax.sgd(0.1), params)
        >>> dynamics.snapshots(lambda path: "w" in path)(state)["['w']"].tolist()
        [1.0, 1.0, 1.0]
    """
    if select is not None:
        check_function("select", select)
    return _Snapshots(select)


@dataclasses.dataclass(frozen=True)
class _Snapshots:
    select: SelectFn | None

    def __call__(self, state: TrainState) -> Any:
        """The parameters, or the selected leaves by path."""
        if self.select is None:
            return state.params
        return select_leaves(state.params, self.select)


def projections(
    directions: PyTree[Float[ArrayLike, "k ..."]],
    *,
    of: Callable[[TrainState], PyTree] | None = None,
) -> "Projections":
    r"""A measurement of the coordinates of what moved along given directions.

    .. math:: c_j = \langle u_j, \theta - \theta_0 \rangle, \quad j = 1, \dots, k

    a plain inner product over all parameters: in units of length where the directions
    are of length one.

    Args:
        directions: ``k`` directions: a matrix ``[k, p]``, its columns in the order of
            the parameters' leaves, or a pytree like the parameters with a leading axis
            ``k`` in every leaf. They become constants of the compiled program.
        of: ``of(state) -> pytree like the parameters``: what is projected in place of
            the displacement ``params - initial_params``.

    Returns:
        ``measure(state) -> Float[Array, "k"]`` in float32. Measurements of the same
        arrays (NumPy's: of equal contents) are equal and hashable.

    Raises:
        ValueError: `directions` are not floating-point, not finite, traced, or disagree
            on ``k``; when called, they do not fit what is projected.

    Memory:
        ``4 k p`` bytes for the directions.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from jaxtheory import dynamics
        >>> state = dynamics.init(optax.sgd(0.1), jnp.zeros(3))
        >>> state = state._replace(params=jnp.array([1.0, 2.0, 4.0]))
        >>> dynamics.projections(jnp.eye(3)[1:])(state).tolist()
        [2.0, 4.0]
    """
    check_params(directions, "directions")
    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(directions)}
    if len(sizes) != 1 or not min(sizes) or 0 in min(sizes):
        shapes = jax.tree.map(np.shape, directions)
        raise ValueError(
            "`directions` must have the same number k >= 1 of directions on axis 0 of "
            f"every leaf, but has the shapes {shapes}. Stack them: "
            "`jax.tree.map(lambda *leaves: jnp.stack(leaves), *directions)`."
        )
    check_known(directions=directions)
    for path, leaf in jax.tree_util.tree_leaves_with_path(directions):
        # Inside another function's `jit` too.
        with jax.ensure_compile_time_eval():
            num_nonfinite = int(jnp.sum(~jnp.isfinite(leaf)))
        if num_nonfinite:
            raise ValueError(
                f"`directions{jax.tree_util.keystr(path)}` must be finite, but has "
                f"{num_nonfinite} entries that are not."
            )
    if of is not None:
        check_function("of", of)
    return Projections(Held(directions), of)


@dataclasses.dataclass(frozen=True)
class Projections:
    """What `projections` returns.

    Attributes:
        directions: The directions.
        of: What of the state is projected; None for the displacement.
    """

    directions: Held
    of: Callable[[TrainState], PyTree] | None

    def __call__(self, state: TrainState) -> Float[Array, " k"]:
        """Project the displacement of a state, or what `of` returns of it."""
        return self.project(moved(state) if self.of is None else self.of(state))

    def project(self, tree: PyTree) -> Float[Array, " k"]:
        """The inner products of a pytree with all directions.

        Args:
            tree: A pytree like the parameters.

        Returns:
            Its ``k`` coordinates.

        Raises:
            ValueError: The directions do not fit it.
        """
        vector = as_vector(tree)
        directions = self.directions.tree
        leaves = jax.tree.leaves(directions)
        is_matrix = len(leaves) == 1 and leaves[0].ndim == 2
        if is_matrix and leaves[0].shape[1] == vector.size:
            rows = leaves[0].astype(jnp.float32)
        else:
            _check_like(directions, tree)
            rows = jax.vmap(as_vector)(directions)
        # A matrix-vector product of XLA's CPU back end adds up in one number.
        return jnp.sum(rows * vector[None], axis=1)


def _check_like(directions, tree):
    """Raise unless directions have the structure of `tree` and one axis more."""
    described = [
        (jax.tree.structure(t), [np.shape(a)[skip:] for a in jax.tree.leaves(t)])
        for t, skip in ((directions, 1), (tree, 0))
    ]
    if described[0] != described[1]:
        size = sum(jnp.size(leaf) for leaf in jax.tree.leaves(tree))
        raise ValueError(
            f"`directions` must be a matrix [k, {size}] or a pytree like what is "
            f"projected, {described[1]}, with a leading axis, but without that axis "
            f"are {described[0]}."
        )
