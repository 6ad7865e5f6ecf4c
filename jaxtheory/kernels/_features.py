"""Random features whose inner products are the neural tangent kernel."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PyTree, Shaped

from jaxtheory._types import ApplyFn, KeyArray, Params
from jaxtheory.batching import (
    check_batch_size,
    check_count,
    check_examples,
    check_key,
    check_params,
    num_shards,
)
from jaxtheory.kernels._checks import check_outputs
from jaxtheory.kernels._operator import map_sharded, scale_arrays
from jaxtheory.linalg import draw_count_sketch


def ntk_features(
    apply_fn: ApplyFn,
    params: Params,
    x: PyTree[Shaped[ArrayLike, "n ..."]],
    *,
    key: KeyArray,
    dim: int,
    batch_size: int | None = None,
    param_scale: PyTree[Float[ArrayLike, ""]] | None = None,
) -> Float[Array, "n k dim"]:
    r"""Project the gradient of every output to a few random features.

    .. math:: \Phi(x)_k = S^\top \sqrt{s} \odot \nabla_w f_k(x), \qquad
        \mathbb{E}\, \Phi(x_i)_k \cdot \Phi(x_j)_l = \Theta(x_i, x_j)_{kl}

    with a CountSketch ``S`` (`linalg.CountSketch`) of all parameters, so that inner
    products of the features estimate `empirical_ntk` of ``outputs="full"`` without
    bias, and their sum over ``k`` its trace. One key and one ``dim`` give one
    projection, whatever the inputs: the features of training and test examples, or of
    two networks of one shape, go together. An estimate has the standard error

    .. math:: \sqrt{(\Theta_{ii} \Theta_{jj} + \Theta_{ij}^2) / dim}

    at most: 4.4 % of the diagonal at 1,024. The errors of different entries are not
    independent. At the parameters after training these are the features of the
    after-kernel.

    Args:
        apply_fn: The model, ``apply_fn(params, x) -> outputs[n, ...]``, with examples
            independent of each other (it is called on one at a time). All trailing
            axes of the outputs are one axis ``k``.
        params: Floating-point parameters.
        x: Inputs ``[n, ...]``; may be sharded over examples.
        key: The projection.
        dim: Number of features of each output.
        batch_size: Examples per chunk and device whose Jacobian is held at once; None
            takes all.
        param_scale: Factors of the parameters, as for `ntk_operator`.

    Returns:
        Features ``[n, k, dim]``, in at least float32.

    Raises:
        ValueError: As for `ntk_operator`; `dim` is no positive integer.

    Memory:
        The features, one byte for each parameter, and the Jacobian ``[b, k, p]`` of one
        chunk. Time of ``k`` backward passes over the examples, and of one more pass
        over their Jacobian.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxtheory import kernels
        >>> def linear(params, x):
        ...     return x @ params
        >>> x = jnp.array([[3.0, 4.0]])
        >>> features = kernels.ntk_features(
        ...     linear, jnp.ones((2, 1)), x, key=jax.random.key(0), dim=8
        ... )
        >>> features.shape, float(jnp.sum(features**2))
        ((1, 1, 8), 25.0)

    References:
        Park et al., arXiv:2303.14186, section 3 (projected gradients as features of the
        after-kernel); Weinberger et al., arXiv:0902.2206, Lemma 2 (the projection).
    """
    check_key(key)
    check_batch_size(batch_size)
    dim = check_count(dim=dim)
    check_params(params)
    check_examples(x=x)
    check_outputs(apply_fn, params, x)
    scales = scale_arrays(param_scale, params)
    return _features(apply_fn, params, scales, x, key, dim, batch_size, num_shards(x))


@functools.partial(jax.jit, static_argnums=(0, 5, 6, 7))
def _features(apply_fn, params, scales, x, key, dim, batch_size, lanes):
    """The features of checked arguments, one program for each shape."""
    leaves = jax.tree.leaves(params)
    sketches = [
        draw_count_sketch(jax.random.fold_in(key, i), size=leaf.size, dim=dim)
        for i, leaf in enumerate(map(jnp.asarray, leaves))
    ]
    roots = [1.0] * len(leaves) if scales is None else [jnp.sqrt(s) for s in scales]

    def one(example):
        single = jax.tree.map(lambda a: a[None], example)
        return jax.jacrev(lambda p: jnp.ravel(apply_fn(p, single)))(params)

    def project(gradients, root, sketch):
        b, k = gradients.shape[:2]
        rows = gradients.reshape(b * k, -1)
        return root * sketch.project(rows).reshape(b, k, dim)

    def on_chunk(chunk):
        jacobian = jax.tree.leaves(jax.vmap(one)(chunk))
        parts = map(project, jacobian, roots, sketches)
        return functools.reduce(jnp.add, parts)

    return map_sharded(on_chunk, x, batch_size, lanes)
