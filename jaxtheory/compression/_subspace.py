"""Networks in a random subspace: many weights, few numbers to train and to keep."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

from jaxtheory._types import KeyArray, Objective, Params
from jaxtheory.batching import (
    check_count,
    check_function,
    check_key,
    check_params,
    check_word,
)

InitFn: TypeAlias = Callable[[KeyArray], Params]
Start: TypeAlias = Literal["seed", "model_state"]

# Streams of the one seed of a subspace.
_START, _MAP = 0, 1


class SubspaceState(NamedTuple):
    """The model state of an objective whose start is given.

    Attributes:
        start: Parameters that the subspace goes through.
        model_state: That of the objective itself.
    """

    start: Params
    model_state: PyTree


def random_subspace(init_fn: InitFn, *, dim: int, seed: int) -> "Subspace":
    r"""The parameters ``theta0 + P u`` of a network, by ``u`` of a few numbers.

    ``theta0 = init_fn(key)`` is an ordinary initialisation and ``P`` a random map of
    ``[p, dim]``, both drawn from the seed: what training changes, what the optimizer
    keeps and what a file must hold is ``u`` alone. No column of ``P`` is kept either.
    Every parameter moves with one of the ``dim`` numbers,

    .. math:: \theta_i = \theta_{0,i} + \sqrt{\tfrac{dim}{p}} \, \sigma_i \, u_{h(i)},
        \qquad \mathbb{E} |P u|^2 = |u|^2

    with random signs ``sigma``; ``h`` cuts each array into blocks of ``dim`` numbers
    and turns each block by a random offset. The columns of ``P`` are orthogonal. It is
    the transpose of a count sketch, and costs one pass over the parameters. As one sum
    and no matrix product, it gives the same bits on every machine that draws the same
    ``theta0``.

    A step of ``u`` moves each parameter by ``sqrt(dim / p)`` as much: an optimizer of
    fixed step lengths (Adam) needs a learning rate larger by ``sqrt(p / dim)``.

    Args:
        init_fn: ``init_fn(key) -> params``, for example ``lambda key:
            module.init(key, x[:1])``.
        dim: Length of ``u``.
        seed: From 0 to ``2**32 - 1``. A small one is shorter in a file.

    Returns:
        The subspace, a hashable value: equal arguments give equal subspaces.

    Raises:
        ValueError: `init_fn` is no hashable function, `dim` no positive integer, or
            `seed` not one of 32 bits.

    Memory:
        Of training: the parameters once more, and their gradient, inside a step; the
        optimizer's state, the gradient that it gets and what is kept of a run have the
        length `dim`. See `Subspace.objective` for ``theta0``.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from jaxtheory import compression, dynamics
        >>> init_fn = lambda key: jax.random.normal(key, (100,))
        >>> subspace = compression.random_subspace(init_fn, dim=5, seed=0)
        >>> fit = lambda w, state, x, key: (jnp.mean((w[None] - x) ** 2), state)
        >>> optimizer = optax.sgd(1.0)
        >>> history = dynamics.train(
        ...     subspace.objective(fit),
        ...     dynamics.init(optimizer, jnp.zeros(5)),
        ...     optimizer,
        ...     jnp.ones((1, 100)),
        ...     num_steps=100,
        ...     key=jax.random.key(0),
        ...     progress=False,
        ... )
        >>> subspace.params(history.state.params).shape
        (100,)

    References:
        Li et al., arXiv:1804.08838 (training in a random subspace); Lotfi et al.,
        arXiv:2211.13609 (and coding it); Chen et al., arXiv:1504.04788 (signs and
        shared weights); Weinberger et al., arXiv:0902.2206 (the map that this is the
        transpose of).
    """
    check_function("init_fn", init_fn)
    dim, seed = check_count(dim=dim), check_count(at_least=0, seed=seed)
    if seed >= 2**32:
        # Without x64, JAX cuts a larger seed off: two of them would be one.
        raise ValueError(f"`seed` must be below 2**32, but was {seed}.")
    return Subspace(init_fn, dim, seed)


@dataclasses.dataclass(frozen=True)
class Subspace:
    """What `random_subspace` returns.

    Attributes:
        init_fn: Gives the parameters that the subspace goes through.
        dim: How many numbers there are to train.
        seed: Seed of the initialisation and of the map.
    """

    init_fn: InitFn
    dim: int
    seed: int

    def start(self) -> Params:
        """``theta0``, drawn anew from the seed."""
        return _start(self.init_fn, np.uint32(self.seed))

    def params(
        self, u: Float[ArrayLike, " dim"], start: Params | None = None
    ) -> Params:
        """``theta0 + P u``.

        Args:
            u: Coordinates in the subspace.
            start: What stands for ``theta0``; None draws it from the seed.

        Returns:
            Parameters, in the dtypes of the start.

        Raises:
            ValueError: `u` is not ``dim`` floating-point numbers, or `start` no
                parameter pytree.
        """
        start = self.start() if start is None else start
        check_params(start, "start")
        self._check_coordinates(u)
        return _moved(start, u, np.uint32(self.seed))

    def project(self, tree: Params) -> Float[Array, " dim"]:
        """``P^T`` of a pytree like the parameters: a gradient, or a displacement.

        Args:
            tree: A pytree of floating-point arrays.

        Returns:
            The ``dim`` inner products with the columns of ``P``.

        Raises:
            ValueError: `tree` is no pytree of floating-point arrays.
        """
        check_params(tree, "tree")
        dtype = jnp.promote_types(jnp.result_type(*jax.tree.leaves(tree)), jnp.float32)
        zeros = jnp.zeros(self.dim, dtype)
        return _projected(tree, zeros, np.uint32(self.seed))

    def objective(self, objective: Objective, *, start: Start = "seed") -> Objective:
        """An objective of the parameters, as one of the coordinates ``u [dim]``.

        Args:
            objective: ``objective(params, model_state, batch, key) -> (scalar,
                model_state)``, as `dynamics.supervised` builds it.
            start: ``"seed"`` draws ``theta0`` anew in each step: it is nowhere kept,
                and costs the time of an initialisation. ``"model_state"`` takes it from
                the model state, a `SubspaceState`: also for one that was trained, on
                other examples.

        Returns:
            An objective for `dynamics.train`, whose state is ``dynamics.init(optimizer,
            jnp.zeros(dim))``, with ``model_state=SubspaceState(start, ())`` where it
            takes that. Equal arguments give equal objectives.

        Raises:
            ValueError: `objective` is no hashable function or `start` no known word;
                when called, the parameters are not ``dim`` numbers, or the model state
                is no `SubspaceState` where it must be.
        """
        check_function("objective", objective)
        check_word("start", start, ("seed", "model_state"))
        return _InSubspace(self, objective, start)

    def _check_coordinates(self, u):
        shape, dtype = jnp.shape(u), jnp.result_type(u)
        if shape != (self.dim,) or not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"`u` must be {self.dim} floating-point numbers, but has shape {shape} "
                f"and dtype {dtype}. Begin with `jnp.zeros({self.dim})`."
            )


@dataclasses.dataclass(frozen=True)
class _InSubspace:
    """What `Subspace.objective` returns."""

    subspace: Subspace
    objective: Objective
    start: Start

    def __call__(
        self, u: Array, model_state: Any, batch: PyTree, key: KeyArray
    ) -> tuple[Float[Array, ""], Any]:
        check_key(key)
        subspace, given = self.subspace, self.start == "model_state"
        subspace._check_coordinates(u)
        if given and not isinstance(model_state, SubspaceState):
            raise ValueError(
                "`model_state` must be a `SubspaceState` that holds the start, but is "
                f"{jax.tree.structure(model_state)}. Pass "
                "`model_state=SubspaceState(params, ())` to `dynamics.init`."
            )
        # Bound to what changes in each step: else the compiler takes what only depends
        # on the seed out of the loop, or computes it itself, and keeps all of it.
        seed, _ = jax.lax.optimization_barrier(
            (jnp.uint32(subspace.seed), jax.lax.stop_gradient(u))
        )
        start = model_state.start if given else _start(subspace.init_fn, seed)
        inner = model_state.model_state if given else model_state
        params = _moved(start, u, seed)
        loss, inner = self.objective(params, inner, batch, key)
        return loss, SubspaceState(start, inner) if given else inner


def _key(seed, stream):
    """Named, so that the default generator of a session does not change the map."""
    return jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), stream)


@functools.partial(jax.jit, static_argnums=0)
def _start(init_fn, seed):
    params = init_fn(_key(seed, _START))
    check_params(params, "init_fn(key)")
    return params


@jax.jit
def _moved(start, u, seed):
    """``start + P u``, each array in its own dtype."""
    u = jnp.asarray(u)
    leaves, structure = jax.tree.flatten(start)
    scaled = u * np.asarray(math.sqrt(u.size / _size(leaves)), u.dtype)

    def move(leaf, index):
        leaf = jnp.asarray(leaf)
        moves = _spread(scaled, leaf.size, jax.random.fold_in(_key(seed, _MAP), index))
        return (leaf + jnp.reshape(moves, leaf.shape)).astype(leaf.dtype)

    moved = [move(leaf, index) for index, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, moved)


@jax.jit
def _projected(tree, zeros, seed):
    """The transpose of `_moved`, by differentiating it."""
    start = jax.tree.map(lambda leaf: jnp.zeros(jnp.shape(leaf), zeros.dtype), tree)
    wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, zeros.dtype), tree)
    return jax.vjp(lambda u: _moved(start, u, seed), zeros)[1](wide)[0]


def _spread(values, size, key):
    """An array of signed values: blocks of all of them, each turned by an offset."""
    dim = values.size
    num_words, num_blocks = -(-size // 32), -(-size // dim)
    bits = jax.random.bits(key, (num_words + num_blocks,), jnp.uint32)
    flags = (bits[:num_words, None] >> np.arange(32, dtype=np.uint32)[None]) & 1
    signs = 1 - 2 * jnp.ravel(flags)[:size].astype(values.dtype)
    offsets = (bits[num_words:] % np.uint32(dim)).astype(jnp.int32)
    # Windows of the values twice: the transpose adds up windows. By single numbers it
    # takes a CPU five times as long.
    twice = jnp.concatenate([values, values])
    window = lambda offset: jax.lax.dynamic_slice_in_dim(twice, offset, dim)
    return signs * jnp.ravel(jax.vmap(window)(offsets))[:size]


def _size(leaves):
    return sum(math.prod(jnp.shape(leaf)) for leaf in leaves)
