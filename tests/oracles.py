"""Slow, obvious truths: dense matrices and explicit loops."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree


def dense_hessian(apply_fn, loss_fn, params, x, y):
    """The p x p Hessian of the mean loss, entry by entry from jax.hessian."""
    flat, unravel = ravel_pytree(params)
    mean_loss = lambda w: jnp.mean(loss_fn(apply_fn(unravel(w), x), y))
    return np.asarray(jax.jit(jax.hessian(mean_loss))(flat))


def dense_ggn(apply_fn, loss_fn, params, x, y):
    """(1/n) sum_i J_i^T H_i J_i from explicit Jacobians, example by example."""
    flat, unravel = ravel_pytree(params)

    def one(xi, yi):
        model = lambda w: apply_fn(unravel(w), xi[None])[0]
        jacobian = jax.jacfwd(model)(flat)
        curved = jax.hessian(lambda f: loss_fn(f[None], yi[None])[0])(model(flat))
        return jacobian, curved

    jacobians, curved = jax.jit(jax.vmap(one))(x, y)
    products = jnp.einsum("nkp,nkl,nlq->pq", jacobians, curved, jacobians)
    return np.asarray(products) / len(x)


def materialise(operator):
    """Dense matrix of an operator on pytrees, column by column."""
    structure = operator.in_structure()
    flat, unravel = ravel_pytree(
        jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), structure)
    )
    columns = [
        ravel_pytree(operator.mv(unravel(jnp.zeros_like(flat).at[i].set(1))))[0]
        for i in range(flat.size)
    ]
    return np.stack([np.asarray(column) for column in columns], axis=1)
