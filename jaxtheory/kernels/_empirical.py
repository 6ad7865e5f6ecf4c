"""Empirical neural tangent kernels by contraction of per-example Jacobians."""

from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PyTree, Shaped

from jaxtheory._types import ApplyFn, Params
from jaxtheory.batching import (
    check_batch_size,
    check_examples,
    check_params,
    map_examples,
    num_shards,
)

Outputs = Literal["trace", "diagonal", "full"]

# i, j: examples; k, l: outputs; p: entries of one parameter array.
_CONTRACTIONS = {
    "trace": "ikp,jkp->ij",
    "diagonal": "ikp,jkp->ijk",
    "full": "ikp,jlp->ijkl",
}


def empirical_ntk(
    apply_fn: ApplyFn,
    params: Params,
    x1: PyTree[Shaped[ArrayLike, "n1 ..."]],
    x2: PyTree[Shaped[ArrayLike, "n2 ..."]] | None = None,
    *,
    outputs: Outputs = "trace",
    batch_size: int | None = None,
) -> Float[Array, "n1 n2 ..."]:
    r"""Compute the neural tangent kernel of a model at its parameters.

    With the Jacobian ``J(x)[k, p]`` of the outputs with respect to all parameters, the
    kernel is ``J(x1) J(x2)^T``, summed over parameters without any weight:

    - ``"full"``: ``K[i, j, k, l] = sum_p J(x1_i)[k, p] J(x2_j)[l, p]``
    - ``"diagonal"``: ``K[i, j, k]``, the entries of ``"full"`` with ``l = k``
    - ``"trace"``: ``K[i, j]``, the **sum** of ``"diagonal"`` over outputs

    The trace is a sum, not a mean: ``k`` times the kernel that governs the mean
    dynamics, and in the NTK parametrisation (not the standard one, whose kernel grows
    with the width) ``k`` times the kernel of an infinitely wide network. Divide by
    ``k`` for regression, prediction, and comparison with `neural_tangents`.

    The Jacobians are contracted at the highest matmul precision, in the precision of
    the parameters and at least float32. The model itself runs as it was written: where
    float32 products default to less (TF32, bfloat16), set
    ``jax.default_matmul_precision("highest")`` around the call for a float32 kernel.

    Compiled once for each `apply_fn`, options and shapes: pass the same function
    object (``model.apply``, a module-level function) again to reuse it.

    Args:
        apply_fn: The model, ``apply_fn(params, x[n, ...]) -> outputs[n, ...]``, with
            examples independent of each other (it is called on one at a time). All
            trailing axes of the outputs are one axis ``k``.
        params: Floating-point parameters.
        x1: Inputs ``[n1, ...]`` (rows).
        x2: Inputs ``[n2, ...]`` (columns); None stands for `x1`, gives an exactly
            symmetric kernel, and on one device costs about half.
        outputs: What is kept of the ``k x k`` block of each pair of examples.
        batch_size: Examples whose Jacobian is held at once, for rows and for columns;
            it need not divide ``n1`` or ``n2``. None takes all at once.

    Returns:
        The kernel: ``[n1, n2]``, ``[n1, n2, k]`` or ``[n1, n2, k, k]``.

    Raises:
        ValueError: Parameters are not floating-point, inputs disagree in structure or
            in their trailing shape, an option is not one of its values, or the outputs
            are not one floating-point array ``[n, ...]`` with an output axis.

    Memory:
        The kernel, and a few Jacobian chunks ``[b, k, p]`` with ``b = batch_size``.
        Where `x1` is sharded, that is each device's: it keeps and chunks its own rows,
        and gathers the columns' inputs (without `batch_size`, their Jacobian). Time
        is ``O(n1 n2 k p)``, ``k`` times that for ``"full"``, plus ``k`` backward passes
        for each row and, when batched, for each column once per chunk of rows.

    Example:
        A linear model ``f(x) = x W`` with ``k`` outputs has the kernel ``k x x'^T``:

        >>> import jax.numpy as jnp
        >>> from jaxtheory import kernels
        >>> def linear(params, x):
        ...     return x @ params["w"]
        >>> params = {"w": jnp.ones((2, 3))}
        >>> x = jnp.array([[1.0, 0.0], [1.0, 1.0]])
        >>> kernels.empirical_ntk(linear, params, x).tolist()
        [[3.0, 3.0], [3.0, 6.0]]
        >>> kernels.empirical_ntk(linear, params, x, outputs="full").shape
        (2, 2, 3, 3)

    References:
        Jacot, Gabriel, Hongler, arXiv:1806.07572, section 4 (the kernel); Novak,
        Sohl-Dickstein, Schoenholz, arXiv:2206.08720, section 3.2 (its cost by
        Jacobian contraction).
    """
    if outputs not in get_args(Outputs):
        raise ValueError(
            f"`outputs` must be one of {get_args(Outputs)}, but was {outputs!r}."
        )
    check_batch_size(batch_size)
    check_params(params)
    check_examples(x1=x1)
    if x2 is not None:
        check_examples(x2=x2)
        _check_same_inputs(x1, x2)
    return _empirical_ntk(
        apply_fn, params, x1, x2, outputs, batch_size, num_shards((x1, x2))
    )


@partial(jax.jit, static_argnums=(0, 4, 5, 6))
def _empirical_ntk(apply_fn, params, x1, x2, outputs, batch_size, lanes):
    """The kernel of checked arguments, one program for each shape."""
    _check_outputs(apply_fn, params, x1)
    jacobian = partial(_jacobian, apply_fn, params)
    contract = partial(_contract, outputs)
    if batch_size is not None and lanes > 1:
        columns = x1 if x2 is None else x2
        kernel = _by_lane(jacobian, contract, x1, columns, batch_size, lanes)
        return _mirror(kernel) if x2 is None else kernel
    if x2 is None:
        return _symmetric(jacobian, contract, x1, batch_size)
    return _rectangular(jacobian, contract, x1, x2, batch_size)


def _by_lane(jacobian, contract, x1, x2, batch_size, lanes):
    """The kernel with rows sharded into `lanes`, each scanning its own rows."""
    split = lambda a: a.reshape(lanes, -1, *a.shape[1:])
    rows = lambda x1: _rectangular(jacobian, contract, x1, x2, batch_size)
    kernel = jax.vmap(rows)(jax.tree.map(split, x1))
    return kernel.reshape(-1, *kernel.shape[2:])


def _rectangular(jacobian, contract, x1, x2, batch_size):
    """The kernel between two sets: for each chunk of rows, all chunks of columns."""

    def rows(chunk1):
        jacobian1 = jacobian(chunk1)

        def columns(chunk2):
            return jnp.swapaxes(contract(jacobian1, jacobian(chunk2)), 0, 1)

        return jnp.swapaxes(map_examples(columns, x2, batch_size=batch_size), 0, 1)

    return map_examples(rows, x1, batch_size=batch_size)


def _symmetric(jacobian, contract, x, batch_size):
    """The kernel of one set: blocks that touch the upper triangle, then mirrored."""
    n = jnp.shape(jax.tree.leaves(x)[0])[0]
    if batch_size is None or batch_size >= n:
        whole = jacobian(x)
        return _mirror(contract(whole, whole))
    indexed = (jnp.arange(n), x)

    def rows(chunk1):
        index1, inputs1 = chunk1
        jacobian1 = jacobian(inputs1)
        block = lambda inputs2: contract(jacobian1, jacobian(inputs2))

        def columns(chunk2):
            index2, inputs2 = chunk2
            shape = jax.eval_shape(block, inputs2)
            skip = lambda inputs2: jnp.zeros(shape.shape, shape.dtype)
            upper = index2[-1] >= index1[0]
            return jnp.swapaxes(jax.lax.cond(upper, block, skip, inputs2), 0, 1)

        return jnp.swapaxes(map_examples(columns, indexed, batch_size=batch_size), 0, 1)

    return _mirror(map_examples(rows, indexed, batch_size=batch_size))


def _mirror(kernel):
    """Make ``K[i, j, k, l] = K[j, i, l, k]`` hold exactly, from its upper triangle."""
    transposed = jnp.swapaxes(kernel, 0, 1)
    if kernel.ndim == 4:
        transposed = jnp.swapaxes(transposed, 2, 3)
    index = jnp.arange(kernel.shape[0])
    index = index.reshape(-1, *(1,) * (kernel.ndim - 1))
    row, column = index, jnp.swapaxes(index, 0, 1)
    # Of a block on the diagonal both triangles were computed: their mean.
    lower = jnp.where(row > column, transposed, (kernel + transposed) / 2)
    return jnp.where(row < column, kernel, lower)


def _jacobian(apply_fn, params, x):
    """Jacobian of each example's outputs, leaves ``[b, k, p]`` of flattened arrays."""

    def one(x):
        single = jax.tree.map(lambda a: a[None], x)
        return jax.jacrev(lambda params: jnp.ravel(apply_fn(params, single)))(params)

    return jax.tree.map(lambda a: a.reshape(*a.shape[:2], -1), jax.vmap(one)(x))


def _contract(outputs, jacobian1, jacobian2):
    """Contract two Jacobians over all parameters, array by array."""
    leaves1, leaves2 = jax.tree.leaves(jacobian1), jax.tree.leaves(jacobian2)
    dtype = jnp.result_type(jnp.float32, *leaves1)
    products = [
        jnp.einsum(
            _CONTRACTIONS[outputs],
            leaf1,
            leaf2,
            precision="highest",
            preferred_element_type=dtype,
        )
        for leaf1, leaf2 in zip(leaves1, leaves2, strict=True)
    ]
    return sum(products[1:], start=products[0])


def _check_outputs(apply_fn: ApplyFn, params: Any, x: Any) -> None:
    """Raise unless the model gives one floating-point array ``[n, ...]`` with outputs.

    Only shapes are computed.
    """
    n = jnp.shape(jax.tree.leaves(x)[0])[0]
    found = jax.eval_shape(apply_fn, params, x)
    if not isinstance(found, jax.ShapeDtypeStruct):
        raise ValueError(
            "`apply_fn` must return one array of outputs [n, ...], but returned "
            f"{jax.tree.structure(found)}. Return the outputs alone: drop mutable "
            "collections and auxiliary values in a wrapper."
        )
    if found.shape[:1] != (n,):
        raise ValueError(
            f"`apply_fn` must return one row of outputs for each of {n} examples, "
            f"but returned shape {found.shape}. Keep examples on the leading axis."
        )
    if len(found.shape) == 1 or found.size == 0:
        raise ValueError(
            "`apply_fn` must return outputs [n, k] with an output axis, but returned "
            f"shape {found.shape}. Add it: `lambda params, x: apply_fn(params, x)"
            "[:, None]`."
        )
    if not jnp.issubdtype(found.dtype, jnp.floating):
        raise ValueError(
            "`apply_fn` must return floating-point outputs to be differentiated, but "
            f"returned dtype {found.dtype}. Return logits, not predicted classes."
        )


def _check_same_inputs(x1: Any, x2: Any) -> None:
    """Raise unless `x1` and `x2` differ in their number of examples alone."""
    structures = jax.tree.structure(x1), jax.tree.structure(x2)
    if structures[0] != structures[1]:
        raise ValueError(
            "`x2` must have the structure of `x1`, but has "
            f"{structures[1]} against {structures[0]}."
        )
    for (path, leaf1), leaf2 in zip(
        jax.tree_util.tree_leaves_with_path(x1), jax.tree.leaves(x2), strict=True
    ):
        shape1, shape2 = jnp.shape(leaf1), jnp.shape(leaf2)
        if shape1[1:] != shape2[1:]:
            raise ValueError(
                f"`x2{jax.tree_util.keystr(path)}` must have the shape of `x1` after "
                f"the axis of examples, but has shape {shape2} against {shape1}. Pass "
                "inputs of one kind, or reshape one of them."
            )
