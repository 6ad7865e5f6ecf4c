"""Empirical neural tangent kernels of any model."""

from functools import partial
from typing import NamedTuple

import jax
from jaxtyping import Array, ArrayLike, Float, PyTree, Shaped

from jaxtheory._types import ApplyFn, Params
from jaxtheory.batching import (
    check_batch_size,
    check_examples,
    check_params,
    num_shards,
)
from jaxtheory.kernels import _chunk, _plan
from jaxtheory.kernels._blocks import blocks, row_sharding
from jaxtheory.kernels._checks import check_outputs, check_same_inputs
from jaxtheory.kernels._groups import Outputs
from jaxtheory.kernels._plan import Method
from jaxtheory.kernels._scale import frozen_leaves, leaf_scales


def empirical_ntk(
    apply_fn: ApplyFn,
    params: Params,
    x1: PyTree[Shaped[ArrayLike, "n1 ..."]],
    x2: PyTree[Shaped[ArrayLike, "n2 ..."]] | None = None,
    *,
    outputs: Outputs = "trace",
    method: Method = "auto",
    batch_size: int | None = None,
    param_scale: PyTree[Float[ArrayLike, ""]] | None = None,
    per_layer: bool = False,
) -> PyTree[Float[Array, "n1 n2 ..."]]:
    r"""Compute the neural tangent kernel of a model at its parameters.

    With the Jacobian ``J(x)[k, p]`` of the outputs with respect to all parameters, the
    kernel is ``J(x1) J(x2)^T``, summed over parameters:

    - ``"full"``: ``K[i, j, k, l] = sum_p J(x1_i)[k, p] J(x2_j)[l, p]``
    - ``"diagonal"``: ``K[i, j, k]``, the entries of ``"full"`` with ``l = k``
    - ``"trace"``: ``K[i, j]``, the **sum** of ``"diagonal"`` over outputs

    The trace is a sum, not a mean: ``k`` times the kernel that governs the mean
    dynamics, and in the NTK parametrisation (not the standard one, whose kernel grows
    with the width) ``k`` times the kernel of an infinitely wide network
    (`infinite_width`; for other parametrisations see `ntk_scaling`). Divide by ``k``
    for regression, prediction, and comparison with `neural_tangents`, which divides.

    The structured method (``"sites"``) traces the model and finds where each parameter
    enters a matrix product, a convolution, a table lookup, or a product or sum entry by
    entry (a scale, a bias): ``y = a w``. The gradient with respect to ``w`` is the
    product of the input ``a`` and the cotangent of ``y``, so that the kernel follows
    from the two, as (Gram matrix of inputs) times (Gram matrix of cotangents) or from
    the gradients formed of them, whichever is cheaper for the parameter. A parameter
    used at several places gets their cross terms; one that is used in any other way is
    differentiated as it is. The result is that of ``"jacobian"``, to rounding.

    Gram matrices are computed at the highest matmul precision, in the precision of the
    parameters and at least float32. The model itself runs as it was written: where
    float32 products default to less (TF32, bfloat16), set
    ``jax.default_matmul_precision("highest")`` around the call for a float32 kernel.

    Compiled once for each `apply_fn`, options and shapes: pass the same function
    object (``model.apply``, a module-level function) again to reuse it.

    Args:
        apply_fn: The model, ``apply_fn(params, x[n, ...]) -> outputs[n, ...]``, with
            examples independent of each other (it is called on one at a time;
            `check_model` tells). All trailing axes of the outputs are one axis ``k``.
        params: Floating-point parameters.
        x1: Inputs ``[n1, ...]`` (rows).
        x2: Inputs ``[n2, ...]`` (columns); None stands for `x1`, gives an exactly
            symmetric kernel, and in batches on one device costs about half.
        outputs: What is kept of the ``k x k`` block of each pair of examples.
        method: ``"jacobian"`` contracts Jacobians; ``"sites"`` is the structured
            method; ``"vector_products"`` multiplies the model's Jacobian with each
            column of the transposed one, a forward pass for each pair; ``"auto"``
            takes the structured method unless vector products need fewer operations.
        batch_size: Examples whose gradients are held at once, for rows and for columns;
            it need not divide ``n1`` or ``n2``. None takes all at once.
        param_scale: Factors ``>= 0`` of the parameter arrays' kernels: the kernel is
            ``sum_leaf scale[leaf] K[leaf]``. Zero freezes an array, a learning rate
            weighs it; with those of `ntk_scaling` the kernel of a wide network nears
            ``k`` times that of `infinite_width` (both leave out biases that start at
            zero). Structured as `params`, or coarser: one number for a subtree holds
            for all of it.
        per_layer: Whether to return the kernel of each parameter array instead of
            their sum, in the structure of `params`.

    Returns:
        The kernel: ``[n1, n2]``, ``[n1, n2, k]`` or ``[n1, n2, k, k]``; with
        `per_layer`, a pytree of them.

    Raises:
        ValueError: Parameters are not floating-point, inputs disagree in structure or
            in their trailing shape, an option is not one of its values, or the outputs
            are not one floating-point array ``[n, ...]`` with an output axis.

    Memory:
        The kernel, and for two chunks of ``b = batch_size`` examples (``"sites"``) the
        inputs and cotangents of every product, ``[b, t, c]`` and ``[b, k, t, f]`` with
        ``t`` positions (tokens, pixels), and products of ``[b, b, t, t]``, or gradients
        where forming them is cheaper; (``"jacobian"``) gradients ``[b, k, p]``. Where
        `x1` is sharded, that is each device's: it keeps and chunks its own rows, and
        gathers the columns' inputs. Time is ``k`` backward passes for each row and,
        when batched, for each column once per chunk of rows; then for a parameter array
        of ``c x f`` entries ``O(n1 n2 t^2 (c + k f))`` (``"sites"``, or less), ``O(n1
        n2 k c f)`` (``"jacobian"``), ``k`` times the part with ``k`` for ``"full"``.

    Example:
        A linear model ``f(x) = x W`` with ``k`` outputs has the kernel ``k x x'^T``:

        >>> import jax.numpy as jnp
        >>> from jaxtheory import kernels
        >>> def linear(params, x):
        ...     return x @ params["w"] + params["b"]
        >>> params = {"w": jnp.ones((2, 3)), "b": jnp.zeros((1, 3))}
        >>> x = jnp.array([[1.0, 0.0], [1.0, 1.0]])
        >>> kernels.empirical_ntk(linear, params, x).tolist()
        [[6.0, 6.0], [6.0, 9.0]]
        >>> frozen = {"w": 1.0, "b": 0.0}
        >>> kernels.empirical_ntk(linear, params, x, param_scale=frozen).tolist()
        [[3.0, 3.0], [3.0, 6.0]]
        >>> kernels.empirical_ntk(linear, params, x, outputs="full").shape
        (2, 2, 3, 3)

    References:
        Jacot, Gabriel, Hongler, arXiv:1806.07572, section 4 (the kernel); Novak,
        Sohl-Dickstein, Schoenholz, arXiv:2206.08720, sections 3.2 to 3.4 (Jacobian
        contraction, vector products, structured derivatives).
    """
    _plan.check_options(method, outputs)
    check_batch_size(batch_size)
    check_params(params)
    check_examples(x1=x1)
    if x2 is not None:
        check_examples(x2=x2)
        check_same_inputs(x1, x2)
    if per_layer and method == "vector_products":
        raise ValueError(
            '`per_layer` needs the gradient of each array, and `method` was "vector_'
            'products", which sums over all. Use "auto", "sites" or "jacobian".'
        )
    scales = leaf_scales(params, param_scale)
    settings = _Settings(
        outputs,
        method,
        batch_size,
        per_layer,
        frozen_leaves(scales),
        num_shards((x1, x2)),
        row_sharding(x1),
    )
    return _empirical_ntk(apply_fn, params, x1, x2, scales, settings)


class _Settings(NamedTuple):
    """The options of `empirical_ntk`, static in its compilation."""

    outputs: Outputs
    method: Method
    batch_size: int | None
    per_layer: bool
    frozen: tuple[int, ...]
    lanes: int
    sharding: jax.sharding.Sharding | None


@partial(jax.jit, static_argnums=(0, 5))
def _empirical_ntk(apply_fn, params, x1, x2, scales, settings):
    """The kernel of checked arguments, one program for each shape."""
    check_outputs(apply_fn, params, x1)
    sizes = [jax.tree.leaves(x)[0].shape[0] for x in (x1, x1 if x2 is None else x2)]
    n1, n2 = (n if settings.batch_size is None else settings.batch_size for n in sizes)
    method = settings.method
    if settings.per_layer and method == "auto":
        method = "sites"
    plan = _plan.make(
        apply_fn,
        params,
        x1,
        method=method,
        outputs=settings.outputs,
        chunks=(min(n1, sizes[0]), min(n2, sizes[1])),
        frozen=settings.frozen,
    )
    leaves, structure = jax.tree.flatten(params)
    features = partial(_chunk.features, plan, leaves)

    contract = lambda rows, columns: _chunk.kernel(
        plan,
        settings.outputs,
        leaves,
        scales,
        rows,
        columns,
        per_leaf=settings.per_layer,
    )
    kernels = blocks(
        features,
        contract,
        x1,
        x2,
        batch_size=settings.batch_size,
        lanes=settings.lanes,
        sharding=settings.sharding,
        in_halves=plan.in_halves,
    )
    if settings.per_layer:
        return jax.tree.unflatten(structure, kernels)
    return kernels[0]
