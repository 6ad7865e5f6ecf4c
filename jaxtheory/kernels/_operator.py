"""The neural tangent kernel as an operator: products without the matrix."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, ArrayLike, Float, PyTree, Shaped

from jaxtheory._types import ApplyFn, Params
from jaxtheory.batching import (
    check_batch_size,
    check_examples,
    check_params,
    map_examples,
    num_shards,
    sum_examples,
)
from jaxtheory.kernels._blocks import by_lane
from jaxtheory.kernels._checks import check_outputs, check_same_inputs
from jaxtheory.kernels._scale import leaf_scales
from jaxtheory.linalg import function_operator


def ntk_operator(
    apply_fn: ApplyFn,
    params: Params,
    x1: PyTree[Shaped[ArrayLike, "n1 ..."]],
    x2: PyTree[Shaped[ArrayLike, "n2 ..."]] | None = None,
    *,
    batch_size: int | None = None,
    param_scale: PyTree[Float[ArrayLike, ""]] | None = None,
) -> lx.FunctionLinearOperator:
    r"""Build the neural tangent kernel as an operator on arrays ``[n, k]``.

    .. math:: (\Theta v)_{ik} = \sum_{jl} \sum_p
        J(x_{1,i})_{kp} \, s_p \, J(x_{2,j})_{lp} \, v_{jl}

    the product with `empirical_ntk` of ``outputs="full"``: summed over parameters and
    outputs, divided by nothing. It is one backward pass over `x2` (``J^T v``) and one
    forward pass over `x1` (``J u``); no kernel is formed. With it, ``linalg`` gives top
    eigenpairs, spectral density, effective dimension and trace; `ntk_regression`
    solves.

    Args:
        apply_fn: The model, ``apply_fn(params, x) -> outputs[n, ...]``, with examples
            independent of each other. All trailing axes of the outputs are one axis
            ``k``.
        params: Parameters at which the kernel is taken.
        x1: Inputs ``[n1, ...]`` (rows); may be sharded over examples.
        x2: Inputs ``[n2, ...]`` (columns); None stands for `x1` and gives a symmetric
            positive semidefinite operator, tagged so. With test inputs as `x1` and
            training inputs as `x2`, the product with dual coefficients predicts.
        batch_size: Examples per chunk and device; None takes all at once. Build the
            operator outside `jit` for chunks that follow the sharding: under `jit` an
            array does not know where it lives.
        param_scale: Factors ``s >= 0`` of the parameter arrays' kernels, as for
            `empirical_ntk`: the kernel is linear in them, and zero freezes an array.

    Returns:
        A lineax operator from ``[n2, k]`` to ``[n1, k]``, in the dtype of the outputs.
        A product takes the operations of one gradient and two more forward passes
        (three in chunks), and on data sharded over devices exactly one all-reduce.

    Raises:
        ValueError: Parameters are not floating-point, inputs disagree in structure or
            in their trailing shape, the outputs are not one floating-point array
            ``[n, ...]`` with an output axis, or `param_scale` does not fit `params` or
            is negative.

    Memory:
        Activations of one chunk and two copies of the parameters; ``O((n1 + n2) k)``
        beside them.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxtheory import kernels
        >>> def linear(params, x):
        ...     return x @ params
        >>> x = jnp.array([[1.0, 0.0], [1.0, 1.0]])
        >>> theta = kernels.ntk_operator(linear, jnp.ones((2, 1)), x)
        >>> theta.mv(jnp.array([[1.0], [1.0]])).tolist()  # X X^T v
        [[2.0], [3.0]]

    References:
        Jacot, Gabriel, Hongler, arXiv:1806.07572, section 4 (the kernel); Novak,
        Sohl-Dickstein, Schoenholz, arXiv:2206.08720, section 3.3 (its products).
    """
    check_batch_size(batch_size)
    check_params(params)
    check_examples(x1=x1)
    if x2 is not None:
        check_examples(x2=x2)
        check_same_inputs(x1, x2)
    check_outputs(apply_fn, params, x1)
    scales = scale_arrays(param_scale, params)
    columns = x1 if x2 is None else x2
    lanes = num_shards(x1), num_shards(columns)
    outputs = jax.eval_shape(apply_fn, params, columns)
    vector = jax.ShapeDtypeStruct(
        (outputs.shape[0], outputs.size // outputs.shape[0]), outputs.dtype
    )
    tags = (lx.symmetric_tag, lx.positive_semidefinite_tag) if x2 is None else ()
    product = _KernelProduct(apply_fn, batch_size, *lanes)
    return function_operator(
        product, params, scales, x1, x2, structure=vector, tags=tags
    )


@dataclass(frozen=True)
class _KernelProduct:
    """A product with the kernel, hashable so that equal ones share code."""

    apply_fn: ApplyFn
    batch_size: int | None
    lanes1: int
    lanes2: int

    def __call__(self, params, scales, x1, x2, vector):
        columns = x1 if x2 is None else x2
        gradient = self._transposed(params, columns, vector)
        if scales is not None:
            leaves, treedef = jax.tree.flatten(gradient)
            gradient = treedef.unflatten(map(jnp.multiply, scales, leaves))
        return self._forward(params, x1, gradient)

    def _transposed(self, params, x, vector):
        """``J(x)^T vector``, a pytree like `params`."""

        def pull(chunk, weights):
            inputs, cotangent = chunk
            outputs, back = jax.vjp(lambda p: self.apply_fn(p, inputs), params)
            cotangent = weights[:, None] * cotangent
            return back(cotangent.reshape(outputs.shape).astype(outputs.dtype))[0]

        return sum_examples(
            pull, (x, vector), batch_size=self.batch_size, lanes=self.lanes2
        )

    def _forward(self, params, x, tangent):
        """``J(x) tangent``, ``[n, k]``."""

        def push(inputs):
            model = lambda p: self.apply_fn(p, inputs)
            image = jax.jvp(model, (params,), (tangent,))[1]
            return image.reshape(image.shape[0], -1)

        return map_sharded(push, x, self.batch_size, self.lanes1)


def map_sharded(
    function: Callable[[Any], PyTree], data: PyTree, batch_size: int | None, lanes: int
) -> PyTree:
    """`map_examples` in which each device chunks its own examples, and keeps them."""
    n = check_examples(data=data)
    if lanes == 1 or batch_size is None or batch_size >= n // lanes:
        return map_examples(
            function, data, batch_size=None if lanes > 1 else batch_size
        )
    chunked = lambda lane: map_examples(function, lane, batch_size=batch_size)
    return by_lane(chunked, data, lanes)


def scale_arrays(param_scale: Any, params: Params) -> list[Array] | None:
    """The factor of each parameter array, in its dtype; None for none."""
    scales = leaf_scales(params, param_scale)
    if scales is None:
        return None
    leaves = jax.tree.leaves(params)
    return [
        jnp.asarray(s, jnp.result_type(p)) for s, p in zip(scales, leaves, strict=True)
    ]
