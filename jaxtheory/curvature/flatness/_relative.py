"""Relative flatness: curvature weighed by the sizes of the neurons it acts on."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Num, PyTree

from jaxtheory._types import ApplyFn, Estimate, KeyArray, LossFn, Params
from jaxtheory.batching import SelectFn, check_count, check_key, select_leaves
from jaxtheory.curvature._operators import hessian
from jaxtheory.curvature.flatness._common import dot, mean_estimate


def relative_flatness(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    params: Params,
    x: PyTree[Num[Array, "n ..."]],
    y: PyTree[Num[Array, "n ..."]],
    *,
    key: KeyArray,
    select: SelectFn | None = None,
    num_samples: int = 16,
    batch_size: int | None = None,
) -> Estimate:
    r"""Estimate relative flatness, summed over layers.

    .. math:: \kappa = \sum_l \sum_{s, s'} \langle w_s, w_{s'} \rangle
        \operatorname{Tr} H_{s s'}

    where ``w_s`` are the weights into output neuron ``s`` of layer ``l`` (a row of the
    paper's ``W``, a *column* of a Flax kernel ``K = W^T``) and ``H_ss'`` is the block
    of the Hessian of the mean loss that differentiates by ``w_s`` and ``w_s'``. Biases
    are left out. With a matrix ``G`` of signs, one row and column an input, it is the
    mean of ``<W G, H[W G]>``: one Hessian product a probe, for all layers together (the
    blocks between layers have mean zero and are left out).

    Multiplying one layer by ``a`` and another by ``1 / a`` does not change it; other
    changes of variables that keep the function, of single neurons say, do.

    Args:
        apply_fn: The model, ``apply_fn(params, x) -> outputs[n, ...]``.
        loss_fn: ``loss_fn(outputs, targets) -> losses[n]``.
        params: Parameters; kernels have outputs on the last axis, as in Flax.
        x: Inputs ``[n, ...]``.
        y: Targets ``[n, ...]``.
        key: Probes.
        select: ``select(path) -> bool`` of a kernel's path, to take some layers: the
            paper takes one. By default all arrays of at least two axes.
        num_samples: Number of probes, at least 2.
        batch_size: As for `curvature.hessian`.

    Returns:
        The mean over probes with its standard error.

    Raises:
        ValueError: Nothing is selected, or an array of fewer than two axes; fewer than
            two samples; or as for `curvature.hessian`.

    Memory:
        One probe and a matrix of signs, the square of a layer's number of inputs.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = lambda w, x: x @ w
        >>> loss = lambda outputs, y: jnp.sum((outputs - y) ** 2, axis=-1) / 2
        >>> x, y = jnp.ones((4, 1)), jnp.ones((4, 2))
        >>> args = (model, loss, jnp.full((1, 2), 3.0), x, y)
        >>> float(relative_flatness(*args, key=jax.random.key(0)).value)  # 3^2 + 3^2
        18.0

    References:
        Petzka et al., Relative flatness and generalization, arXiv:2001.00939,
        definition 3.
    """
    check_key(key)
    num_samples = check_count(at_least=2, num_samples=num_samples)
    kernels = select_leaves(params, lambda _: True)
    if select is None:
        kernels = {path: leaf for path, leaf in kernels.items() if jnp.ndim(leaf) >= 2}
    else:
        kernels = select_leaves(params, select)
    vectors = [path for path, leaf in kernels.items() if jnp.ndim(leaf) < 2]
    if vectors or not kernels:
        raise ValueError(
            "`select` must choose kernels, arrays of at least two axes with outputs on "
            f"the last one, but chose {vectors or 'none'}."
        )
    chosen = frozenset(kernels)
    operator = hessian(
        apply_fn,
        loss_fn,
        params,
        x,
        y,
        batch_size=batch_size,
        select=lambda path: path in chosen,
    )
    return _relative_flatness(operator, kernels, key, num_samples)


@functools.partial(jax.jit, static_argnums=3)
def _relative_flatness(operator, kernels, key, num_samples):

    def one(index):
        probe_key = jax.random.fold_in(key, index)
        probe = {
            path: _mixed(kernel, jax.random.fold_in(probe_key, layer))
            for layer, (path, kernel) in enumerate(kernels.items())
        }
        return dot(probe, operator.mv(probe))

    return mean_estimate(jax.lax.map(one, jnp.arange(num_samples)))


def _mixed(kernel, key):
    """``G^T K``: inputs mixed at random, the same way for every output."""
    rows = kernel.reshape(-1, kernel.shape[-1])
    signs = jax.random.rademacher(key, (rows.shape[0],) * 2, rows.dtype)
    return jnp.matmul(signs, rows, precision="highest").reshape(kernel.shape)
