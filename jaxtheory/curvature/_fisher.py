"""Fisher information of a model's likelihood, and the empirical Fisher of a loss."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Num, PyTree

from jaxtheory._types import ApplyFn, KeyArray, LossFn, Params
from jaxtheory.batching import (
    SelectFn,
    check_batch_size,
    check_count,
    check_examples,
    check_function,
    check_key,
    check_params,
    check_problem,
    num_shards,
)
from jaxtheory.curvature._mean_product import (
    SEMIDEFINITE,
    MeanProduct,
    ggn_product,
    gradient_product,
    mean_operator,
)


def fisher(
    apply_fn: ApplyFn,
    params: Params,
    x: PyTree[Num[Array, "n ..."]],
    *,
    likelihood: Literal["softmax", "gaussian"],
    key: KeyArray | None = None,
    num_samples: int | None = None,
    batch_size: int | None = None,
    select: SelectFn | None = None,
) -> lx.FunctionLinearOperator:
    r"""Build the Fisher information of a model's likelihood as an operator.

    .. math::
        F = \frac{1}{n} \sum_i \mathbb E_{y \sim p(\cdot | f_i)}
            \nabla_w \log p(y | f_i) \, \nabla_w \log p(y | f_i)^\top
          = \frac{1}{n} \sum_i J_i^\top F_i J_i

    with targets drawn from the model, not from the data. ``softmax``: one class per
    position along the last axis of outputs, ``F_i = diag(p) - p p^T``. ``gaussian``:
    outputs are means of independent normals of variance 1, ``F_i = I``. Log-likelihoods
    are *summed* over the other output axes (positions of a sequence). It equals `ggn`
    exactly where the loss is the negative log-likelihood: cross-entropy, also with soft
    or smoothed labels, and *half* the squared distance summed over outputs.

    Args:
        apply_fn: The model, ``apply_fn(params, x) -> outputs[n, ...]``.
        params: Parameters at which it is taken.
        x: Inputs ``[n, ...]``; may be sharded over examples.
        likelihood: What outputs are parameters of; for ``softmax`` logits with at
            least two classes on the last axis.
        key: None takes the expectation exactly. A key draws targets for each example
            instead; their scores do not depend on `batch_size` or sharding, and stay
            the same at every product.
        num_samples: Targets drawn for each example, 1 by default; only with `key`.
        batch_size: As for `hessian`.
        select: As for `hessian`.

    Returns:
        A positive semi-definite operator on parameter pytrees. With `key` an unbiased
        estimate of the exact one; a product costs what one of `ggn` does, whatever
        `num_samples` is.

    Raises:
        ValueError: `likelihood` is unknown or does not fit the outputs, `num_samples`
            comes without `key`; or as for `hessian`.

    Memory:
        Activations of one chunk, and `num_samples` times its outputs.

    Example:
        >>> import jax.numpy as jnp
        >>> model = lambda w, x: x @ w
        >>> x = jnp.array([[1.0, 0.0], [0.0, 2.0]])
        >>> F = fisher(model, jnp.zeros(2), x, likelihood="gaussian")
        >>> F.mv(jnp.ones(2)).tolist()  # X^T X / n
        [0.5, 2.0]

    References:
        Martens, arXiv:1412.1193, sections 5 and 9; Kunstner et al., arXiv:1905.12558.
    """
    check_batch_size(batch_size)
    check_function("apply_fn", apply_fn)
    check_params(params)
    n = check_examples(x=x)
    _check_likelihood(likelihood, jax.eval_shape(apply_fn, params, x), n)
    lanes, selected = num_shards(x), select is not None
    if key is None:
        if num_samples is not None:
            raise ValueError(
                "`num_samples` must be left out where the Fisher is exact, but was "
                f"{num_samples!r}. Pass a `key` to draw targets."
            )
        log_partition = _LIKELIHOODS[likelihood].log_partition
        options = (apply_fn, log_partition, batch_size, lanes, selected)
        product, arrays = MeanProduct(ggn_product, *options), ((x,),)
    else:
        check_key(key)
        draws = 1 if num_samples is None else check_count(num_samples=num_samples)
        scores = _Scores(_LIKELIHOODS[likelihood].scores, draws)
        options = (apply_fn, scores, batch_size, lanes, selected)
        product, arrays = _Sampled(MeanProduct(_score_product, *options)), (x, key)
    return mean_operator(product, params, *arrays, select=select, tags=SEMIDEFINITE)


def empirical_fisher(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    params: Params,
    x: PyTree[Num[Array, "n ..."]],
    y: PyTree[Num[Array, "n ..."]],
    *,
    batch_size: int | None = None,
    select: SelectFn | None = None,
) -> lx.FunctionLinearOperator:
    r"""Build the second moment of the gradients of the examples' losses.

    .. math::
        E = \frac{1}{n} \sum_i g_i g_i^\top, \qquad g_i = \nabla_w \ell(f(w, x_i), y_i)

    with ``1/n``, not centred: `gradient_covariance` is. Despite its name it is no
    Fisher information: targets come from the data, not from the model (`fisher`).

    Args:
        apply_fn: The model, ``apply_fn(params, x) -> outputs[n, ...]``.
        loss_fn: ``loss_fn(outputs, targets) -> losses[n]``.
        params: Parameters at which it is taken.
        x: Inputs ``[n, ...]``; may be sharded over examples.
        y: Targets ``[n, ...]``.
        batch_size: As for `hessian`.
        select: As for `hessian`.

    Returns:
        A positive semi-definite operator of rank at most ``n``. A product is one
        forward tangent and one backward pass, as for `ggn`.

    Raises:
        ValueError: As for `hessian`.

    Memory:
        Activations of one chunk; never the ``n x p`` gradients.

    Example:
        >>> import jax.numpy as jnp
        >>> model = lambda w, x: x * w
        >>> loss = lambda outputs, y: outputs - y
        >>> x, y = jnp.array([1.0, 3.0]), jnp.zeros(2)
        >>> float(
        ...     empirical_fisher(model, loss, jnp.array(1.0), x, y).mv(jnp.array(1.0))
        ... )
        5.0

    References:
        Kunstner et al., Limitations of the empirical Fisher approximation,
        arXiv:1905.12558, equation 3.
    """
    check_batch_size(batch_size)
    check_problem(apply_fn, loss_fn, params, x, y)
    options = (apply_fn, loss_fn, batch_size, num_shards((x, y)), select is not None)
    product = MeanProduct(gradient_product, *options)
    return mean_operator(product, params, (x, y), select=select, tags=SEMIDEFINITE)


@dataclass(frozen=True)
class _Likelihood:
    """An exponential family whose natural parameters are the outputs.

    Attributes:
        log_partition: ``log_partition(outputs[n, ...]) -> [n]``; its second derivative
            is the Fisher information of one example's outputs.
        scores: ``scores(key, output[...], num_samples) -> [num_samples, ...]``:
            gradients of the log-likelihood at drawn targets, for one example.
    """

    log_partition: Callable[[Array], Array]
    scores: Callable[[KeyArray, Array, int], Array]


def _softmax_log_partition(outputs):
    summed = jax.nn.logsumexp(outputs, axis=-1)
    return jnp.sum(summed, axis=range(1, summed.ndim))


def _softmax_scores(key, output, num_samples):
    shape = (num_samples, *output.shape[:-1])
    drawn = jax.random.categorical(key, output, shape=shape)
    classes = jax.nn.one_hot(drawn, output.shape[-1], dtype=output.dtype)
    return classes - jax.nn.softmax(output)[None]


def _gaussian_log_partition(outputs):
    return jnp.sum(outputs**2, axis=range(1, outputs.ndim)) / 2


def _gaussian_scores(key, output, num_samples):
    return jax.random.normal(key, (num_samples, *output.shape), output.dtype)


_LIKELIHOODS = {
    "softmax": _Likelihood(_softmax_log_partition, _softmax_scores),
    "gaussian": _Likelihood(_gaussian_log_partition, _gaussian_scores),
}


def _check_likelihood(likelihood, outputs, n):
    """Raise unless outputs can be parameters of the likelihood."""
    if likelihood not in [*_LIKELIHOODS]:  # which takes what cannot be hashed, too
        raise ValueError(
            f"`likelihood` must be one of {[*_LIKELIHOODS]}, but was {likelihood!r}."
        )
    shape = getattr(outputs, "shape", ())
    floating = hasattr(outputs, "dtype") and jnp.issubdtype(outputs.dtype, jnp.floating)
    if not floating or shape[:1] != (n,):
        raise ValueError(
            f"`apply_fn` must return one floating-point array [{n}, ...], but returned "
            f"{outputs}."
        )
    if likelihood == "softmax" and (len(shape) < 2 or shape[-1] < 2):
        raise ValueError(
            "`likelihood` 'softmax' needs at least two classes on the last axis of "
            f"outputs, but they have shape {shape}. For one logit z of a binary label "
            "let the model return [0, z]."
        )


@dataclass(frozen=True)
class _Scores:
    """Scores of drawn targets for a chunk of examples, ``[b, num_samples, ...]``."""

    one: Callable[..., Array]
    num_samples: int

    def __call__(self, outputs, indices):
        def draw(key, index, output):
            # By example: chunks and shards of any size draw the same targets.
            return self.one(jax.random.fold_in(key, index), output, self.num_samples)

        return lambda key: jax.vmap(draw, (None, 0, 0))(key, indices, outputs)


@dataclass(frozen=True)
class _Sampled:
    """The product of the sampled Fisher, which numbers the examples."""

    mean: MeanProduct

    def __call__(self, params, x, key, vector):
        indices = jnp.arange(jax.tree.leaves(x)[0].shape[0])
        return self.mean(params, (x, indices), key, vector)


def _score_product(model, scores, params, vector, weights, key):
    """``sum_i w_i J_i^T (mean_s u_is u_is^T) J_i v``."""
    outputs, push = jax.linearize(model, params)
    pull = jax.linear_transpose(push, params)
    n, k = outputs.shape[0], outputs[0].size
    drawn = jnp.reshape(scores(outputs)(key), (n, -1, k))
    pushed = jnp.reshape(push(vector), (n, k))
    slopes = jnp.einsum("nsk,nk->ns", drawn, pushed, precision="highest")
    slopes = slopes * (weights.astype(slopes.dtype) / drawn.shape[1])[:, None]
    back = jnp.einsum("ns,nsk->nk", slopes, drawn, precision="highest")
    return pull(jnp.reshape(back, outputs.shape))[0]
