"""Kernels of a network of infinite width, from the network itself."""

import functools
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Shaped

from jaxtheory._types import Estimate, KeyArray
from jaxtheory.batching import (
    check_batch_size,
    check_count,
    check_examples,
    check_key,
    map_examples,
)
from jaxtheory.kernels._infinite_first import FirstLayer
from jaxtheory.kernels._infinite_model import as_model
from jaxtheory.kernels._infinite_moments import Moments
from jaxtheory.kernels._infinite_plan import make_plan, walk_through
from jaxtheory.kernels._infinite_setup import first_layer_tables, precision, set_up
from jaxtheory.kernels._infinite_values import Layout
from jaxtheory.kernels._neural_tangents import neural_tangents

FirstLayerWeights = Literal["exact", "gaussian"]


class InfiniteKernel(NamedTuple):
    """Kernels of one output of a network of infinite width.

    Attributes:
        nngp: Covariance of the outputs over initialisations, ``E[f(x1) f(x2)]``.
        ntk: Tangent kernel in the NTK parametrisation: the sum over parameters of
            their initial variance times the product of derivatives.
        deviations: For each parameter that counts, by key path, its standard deviation
            at initialisation: of a weight times ``sqrt(fan_in)``, of a bias as it is.
            As given (standard error 0, no samples), or estimated from that many draws
            of the parameter.
        first_layer_error: Standard error that ``first_layer="exact"`` leaves in the
            covariance after the first activation: its root mean square over entries,
            relative to that of the entries (small entries err by more of theirs); 0
            where nothing was drawn.
        integration_error: Of activation functions that were integrated numerically,
            the largest share of the second moment, of the function or of its
            derivative, in Hermite modes beyond those used. Entries of pairs that are
            nearly parallel can be off by that much, all others far less; 0 where all
            are in closed form.
        num_nonfinite: Number of entries of the two kernels that are not finite.
    """

    nngp: Float[Array, "n1 n2"]
    ntk: Float[Array, "n1 n2"]
    deviations: dict[str, Estimate]
    first_layer_error: Float[Array, ""]
    integration_error: Float[Array, ""]
    num_nonfinite: Int[Array, ""]


def infinite_width(
    module: Any,
    x1: Shaped[ArrayLike, "n1 ..."],
    x2: Shaped[ArrayLike, "n2 ..."] | None = None,
    *,
    key: KeyArray | None = None,
    weight_std: Any = None,
    bias_std: Any = None,
    first_layer: FirstLayerWeights = "exact",
    num_draws: int = 32_768,
    batch_size: int | None = None,
) -> InfiniteKernel:
    r"""Compute the kernels of a model in the limit of infinite width.

    The model itself is traced, as it is, and walked through with kernels in place of
    activations: nothing is rewritten, and neither its widths nor its depth matter for
    anything but deviations that are estimated. For outputs :math:`f_k` over random
    initialisations, of one and the same ``k``,

    .. math::
        K(x, x') = E[f_k(x) f_k(x')], \qquad
        \Theta(x, x') = E \sum_p \sigma_p^2\,
            \partial_p f_k(x)\, \partial_p f_k(x'),

    with :math:`\sigma_p^2` the variance that parameter ``p`` starts with: the kernel of
    the NTK parametrisation, whatever parametrisation the model is written in. It is of
    *one* output: the sum over ``k`` outputs, ``empirical_ntk(..., outputs="trace")``,
    of a wide network in that parametrisation is ``k`` times as large, apart from
    biases, which count with the variance that they are drawn with (0 for those that
    start at zero) and not with 1. `ntk_scaling` gives the factors that make the
    empirical kernel of a network in the standard parametrisation converge to it.

    What has a rule: dense layers, convolutions (strides, padding), biases, embeddings,
    learned embeddings of positions, sums of all of these, also where branches share
    layers, average pooling over windows or over all positions, flattening and other
    moves of positions, normalisation over channels (`LayerNorm`, `RMSNorm`; their
    scale stays the constant 1 that it starts at, and does not count), dropout in
    eval mode, attention by scores without softmax (many heads), scans over layers, and
    every elementwise function. Piecewise linear functions with a kink at zero (relu,
    leaky relu, abs), erf, exact gelu, sines, exponentials and polynomials have closed
    forms; others (tanh, silu, softplus, gelu by tanh, a function of your own) are
    integrated, in float64 to 1e-7 or better where they are smooth over one standard
    deviation of their input, to less where they have kinks or steep steps:
    `integration_error` says how far. What has no limit (BatchNorm, maxima, softmax, a
    parameter used twice) is refused by name.

    Computed and returned in the widest type: float64 under ``jax.enable_x64(True)``,
    which costs little, otherwise float32. Compiled once for each model and shapes.

    Args:
        module: A Linen module that is called as ``module(x)``, or a pair of functions
            ``(init, apply)``, with ``init(key, x) -> params`` and
            ``apply(params, x) -> outputs[n, k]`` (an NNX model through `nnx.split` and
            `nnx.merge`; a Linen one with other arguments).
        x1: Inputs ``[n1, ...]`` (rows).
        x2: Inputs ``[n2, ...]`` (columns); None stands for `x1`, and gives an exactly
            symmetric kernel.
        key: Typed key of what is estimated; None for always the same one.
        weight_std: Standard deviation of a weight at initialisation *times the root of
            its fan-in*, exactly: a number for all weights, or a mapping from key paths
            (``"Dense_0"``, ``"Dense_0/kernel"``, or nested as the parameters are) to
            numbers. Those left out are estimated from the initialiser at the actual
            shape; never from trained weights.
        bias_std: The same for biases (no fan-in). A number leaves those of
            normalisation layers alone.
        first_layer: The first layer sums over finitely many features, so that weights
            that are not Gaussian never average out there: Flax's default (truncated
            normal) is off by 1 to 5 % from Gaussian weights at *any* width. ``"exact"``
            averages over the real initialiser, by drawing units (with independent
            entries); ``"gaussian"`` takes Gaussian weights of the same deviation, as
            neural-tangents does. For an untruncated normal initialiser the two are one.
        num_draws: Number of units drawn for ``"exact"``.
        batch_size: Rows, and columns, of the block that is computed at once; it need
            not divide ``n1`` or ``n2``. None computes the kernel at once.

    Returns:
        The kernels, the deviations, and how far both can be trusted; see
        `InfiniteKernel`.

    Raises:
        ValueError: The model has no infinite-width limit (the message names the layer
            and says why), an argument is not what it must be, or a parameter is drawn
            with a mean other than zero.
        ImportError: neural-tangents is not installed; the message has the command.

    Memory:
        A few arrays of the size of the covariances: ``n1 n2 s``, with ``s`` positions
        that are flattened at last, and ``n1 n2 s^2`` where positions are pooled or
        attended to. With `batch_size` the ``n`` are its, and the result comes on top.
        Time grows as memory does.

    Example:
        The relu network with one hidden layer of He's deviation: on the diagonal, its
        kernels are ``|x|^2 / d`` times 1 and 2.

        >>> import jax.numpy as jnp
        >>> from jaxtheory import kernels, models
        >>> model = models.MLP((256,), num_outputs=10, use_bias=False)
        >>> x = jnp.array([[1.0, 1.0], [1.0, -1.0]])
        >>> given = {"layer_1": 2**0.5, "output": 1.0}
        >>> limit = kernels.infinite_width(model, x, weight_std=given)
        >>> (100 * limit.ntk).round().tolist()
        [[200.0, 32.0], [32.0, 200.0]]
        >>> (100 * limit.nngp).round().tolist()
        [[100.0, 32.0], [32.0, 100.0]]

    References:
        Lee et al., arXiv:1711.00165, eq. 5 (NNGP of dense networks); Jacot, Gabriel,
        Hongler, arXiv:1806.07572, theorem 1 (NTK); Arora et al., arXiv:1904.11955,
        section 4 (convolutions); Yang, arXiv:1910.12478 (any architecture, as a
        program of such steps); Novak et al., arXiv:1912.02803 (neural-tangents, whose
        rules are used).
    """
    if key is not None:
        check_key(key)
    neural_tangents()
    _check_options(first_layer, num_draws, batch_size)
    _check_inputs(x1, x2)
    x1 = jnp.asarray(x1)
    x2 = None if x2 is None else jnp.asarray(x2)
    model = as_model(module)
    with jax.ensure_compile_time_eval():  # also where the caller is being compiled
        key = jax.random.key(0) if key is None else key
        keys = [jax.random.fold_in(key, i) for i in range(3)]
    setup = set_up(model, x1, keys[0], weight_std, bias_std)
    shape, dtype = tuple(x1.shape[1:]), x1.dtype.name
    plan = make_plan(model, setup.leaves, shape, dtype, precision())
    exact = first_layer == "exact"
    tables = first_layer_tables(model, setup, plan.first, x1, keys[1]) if exact else {}
    arrays = _Arrays(setup.stds, setup.fixed, tables, keys[2])
    options = (model, setup.leaves, plan.diagonal, num_draws, batch_size)
    nngp, ntk, first_error, tail = _kernels(*options, x1, x2, arrays)
    if x2 is None:
        nngp, ntk = _mirror(nngp), _mirror(ntk)
    return InfiniteKernel(
        nngp=nngp,
        ntk=ntk,
        deviations={p: _times(setup.estimates[p], f) for p, f in plan.factors},
        first_layer_error=first_error,
        integration_error=tail,
        num_nonfinite=jnp.sum(~jnp.isfinite(nngp)) + jnp.sum(~jnp.isfinite(ntk)),
    )


class _Arrays(NamedTuple):
    """Arrays that the compiled kernel takes beside the inputs."""

    stds: dict[str, Any]
    fixed: dict[str, Any]
    tables: dict[str, Any]
    key: Any


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _kernels(model, leaves, diagonal, num_draws, batch_size, x1, x2, arrays):
    """Both kernels, and the errors of the first layer and of integration."""
    first = None
    if arrays.tables:
        first = FirstLayer(arrays.key, num_draws, arrays.tables)

    def block(rows, columns, same):
        """Kernels and errors of some rows and columns; None for the rows again."""
        both = rows if columns is None else jnp.concatenate([rows, columns])
        number = None if columns is None else len(columns)
        moments = Moments(Layout(len(rows), number, diagonal, same), first)
        (nngp, ntk), _ = walk_through(
            model, leaves, moments, both, arrays.stds, arrays.fixed
        )
        errors = [
            jnp.max(jnp.stack([jnp.zeros((), nngp.dtype), *found]))
            for found in (moments.errors, moments.tails)
        ]
        return nngp, ntk, *errors

    if x2 is None and (batch_size is None or batch_size >= len(x1)):
        return block(x1, None, jnp.eye(len(x1), dtype=bool))
    return _in_blocks(block, x1, x2, batch_size)


def _in_blocks(block, x1, x2, batch_size):
    """Kernels by blocks of rows and columns; of one set, the upper triangle alone."""
    columns = (jnp.arange(len(x1)), x1) if x2 is None else (jnp.arange(len(x2)), x2)

    def rows(chunk):
        index, inputs = chunk

        def some(chunk):
            others, columns = chunk

            def compute(columns):
                same = None if x2 is not None else index[:, None] == others[None]
                nngp, ntk, *errors = block(inputs, columns, same)
                spread = [jnp.broadcast_to(e, len(columns)) for e in errors]
                return nngp.T, ntk.T, *spread

            if x2 is not None:
                return compute(columns)
            shapes = jax.eval_shape(compute, columns)
            skip = lambda _: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
            return jax.lax.cond(others[-1] >= index[0], compute, skip, columns)

        nngp, ntk, *errors = map_examples(some, columns, batch_size=batch_size)
        worst = [jnp.broadcast_to(jnp.max(e), len(inputs)) for e in errors]
        return nngp.T, ntk.T, *worst

    indexed = (jnp.arange(len(x1)), x1)
    nngp, ntk, *errors = map_examples(rows, indexed, batch_size=batch_size)
    return nngp, ntk, *map(jnp.max, errors)


@jax.jit  # compiled with what computes it, each side would round in its own way
def _mirror(kernel):
    """A symmetric kernel from its upper triangle."""
    return jnp.triu(kernel) + jnp.triu(kernel, 1).T


def _times(estimate, factor):
    """An estimate times a number."""
    value, error, number = estimate
    return Estimate(value * factor, error * factor, number)


def _check_options(first_layer, num_draws, batch_size):
    """Raise unless the options are among those that exist."""
    check_batch_size(batch_size)
    check_count(num_draws=num_draws, at_least=64)
    if first_layer not in get_args(FirstLayerWeights):
        raise ValueError(
            f"`first_layer` must be one of {get_args(FirstLayerWeights)}, but was "
            f"{first_layer!r}."
        )


def _check_inputs(x1, x2):
    """Raise unless inputs are arrays of examples, of one kind."""
    check_examples(x1=x1)
    if len(np.shape(x1)) < 2:
        raise ValueError(
            "`x1` must have a feature axis after that of examples, but has shape "
            f"{np.shape(x1)}. Add it: `x1[:, None]`."
        )
    if x2 is None:
        return
    check_examples(x2=x2)
    if np.shape(x2)[1:] != np.shape(x1)[1:]:
        raise ValueError(
            "`x2` must have the shape of `x1` after the axis of examples, but has "
            f"shape {np.shape(x2)} against {np.shape(x1)}."
        )
