"""The model's Taylor expansion in its parameters, as a model."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxtheory._types import ApplyFn, Params
from jaxtheory.batching import check_count, check_params
from jaxtheory.linalg import check_vector


def linearize(apply_fn: ApplyFn, params: Params) -> ApplyFn:
    r"""Make the linear model that a model is near its parameters.

    ``f_lin(w, x) = f(w_0, x) + J(x) (w - w_0)``, with the Jacobian ``J`` in the
    parameters at ``w_0 = params``. It is an `ApplyFn` like any other: training it with
    gradient descent is what `gradient_flow_mse` and its neighbours predict, and its
    empirical NTK is that of the model at ``w_0``, whatever its parameters.

    Args:
        apply_fn: The model, ``apply_fn(params, x[n, ...]) -> outputs[n, ...]``.
        params: Where to expand, ``w_0``.

    Returns:
        ``f_lin(params, x)``. Keep it: what is compiled for one is not used for the
        next, even of the same model.

    Raises:
        ValueError: `params` are not floating-point; when called, its parameters are
            not like `params`.

    Memory:
        A call costs about two of the model, and keeps no Jacobian.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxtheory.kernels import predict
        >>> model = lambda w, x: (x * w) ** 2
        >>> linear = predict.linearize(model, jnp.array(1.0))
        >>> linear(jnp.array(3.0), jnp.ones(2)).tolist()  # 1 + 2 (3 - 1)
        [5.0, 5.0]

    References:
        Lee et al., arXiv:1902.06720, equation 3.
    """
    return taylor_expand(apply_fn, params, degree=1)


def taylor_expand(apply_fn: ApplyFn, params: Params, *, degree: int) -> ApplyFn:
    r"""Expand a model in its parameters to any degree.

    ``f_d(w, x) = sum_{j=0}^d (1 / j!) (d/ds)^j f(w_0 + s (w - w_0), x)`` at ``s = 0``:
    the polynomial in ``w`` that agrees with the model at ``w_0 = params`` up to
    derivatives of order ``d``. Degree 2 is the quadratic model, the least in which the
    kernel moves.

    Args:
        apply_fn: The model, ``apply_fn(params, x[n, ...]) -> outputs[n, ...]``.
        params: Where to expand, ``w_0``.
        degree: ``d``, 0 (constant in ``w``) or more.

    Returns:
        ``f_d(params, x)``, as `linearize` returns it.

    Raises:
        ValueError: `params` are not floating-point, or `degree` is no such number; when
            called, its parameters are not like `params`.

    Memory:
        A call costs about ``2^degree`` of the model in time and memory: derivatives
        along one line, in forward mode, nested.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxtheory.kernels import predict
        >>> model = lambda w, x: (x * w) ** 3
        >>> quadratic = predict.taylor_expand(model, jnp.array(1.0), degree=2)
        >>> quadratic(jnp.array(3.0), jnp.ones(2)).tolist()  # 1 + 3 * 2 + 3 * 4
        [19.0, 19.0]

    References:
        Bai and Lee, arXiv:1910.01619 (the quadratic model).
    """
    check_params(params)
    degree = check_count(at_least=0, degree=degree)

    def expanded(new_params: PyTree, x: PyTree) -> PyTree[Float[Array, "n ..."]]:
        check_vector(new_params, params, "params")
        step = jax.tree.map(jnp.subtract, new_params, params)
        along = lambda s: apply_fn(_move(params, step, s), x)
        return _taylor_sum(along, degree)

    return expanded


def _move(params, step, s):
    """``params + s step``, in the dtype of each parameter."""
    return jax.tree.map(
        lambda p, d: p + jnp.asarray(s, d.dtype) * d.astype(jnp.result_type(p)),
        params,
        step,
    )


def _taylor_sum(function, degree):
    """The Taylor polynomial of a function of one number around 0, at 1."""
    terms = lambda s: (function(s),)
    for order in range(1, degree + 1):
        terms = _append_derivative(terms, order)
    return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *terms(0.0))


def _append_derivative(terms, order):
    """Functions ``(t_0, ..., t_j)`` followed by ``t_j' / order``."""

    def longer(s):
        values, slopes = jax.jvp(terms, (s,), (1.0,))
        return *values, jax.tree.map(lambda slope: slope / order, slopes[-1])

    return longer
