"""Measures that are one number of a curvature operator, with their definition fixed."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Num, PyTree, Real

from jaxtheory import linalg
from jaxtheory._types import ApplyFn, Estimate, KeyArray, LossFn, Params
from jaxtheory.batching import check_word
from jaxtheory.curvature._fisher import empirical_fisher
from jaxtheory.curvature._operators import ggn, hessian
from jaxtheory.curvature.flatness._common import (
    MeanLoss,
    check_positive,
    dot,
    prepare,
)

_MATRICES = {"ggn": ggn, "empirical_fisher": empirical_fisher, "hessian": hessian}


def hessian_trace(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    params: Params,
    x: PyTree[Num[Array, "n ..."]],
    y: PyTree[Num[Array, "n ..."]],
    *,
    key: KeyArray,
    num_samples: int = 16,
    batch_size: int | None = None,
) -> Estimate:
    r"""Estimate the trace of the Hessian of the mean loss.

    .. math:: \operatorname{tr} H = \sum_i \lambda_i

    a sum over all ``p`` eigenvalues, not a mean. The published study adds up 100 Ritz
    values of one Lanczos run and drops their quadrature weights: that is no trace (it
    grows with the number of iterations).

    Args:
        apply_fn: The model, ``apply_fn(params, x) -> outputs[n, ...]``.
        loss_fn: ``loss_fn(outputs, targets) -> losses[n]``.
        params: Parameters at which it is taken.
        x: Inputs ``[n, ...]``.
        y: Targets ``[n, ...]``.
        key: Probes.
        num_samples: As for `linalg.trace`.
        batch_size: As for `curvature.hessian`.

    Returns:
        As `linalg.trace`.

    Raises:
        ValueError: As for `curvature.hessian` and `linalg.trace`.

    Memory:
        As for `linalg.trace`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = lambda w, x: x @ w
        >>> loss = lambda outputs, y: (outputs - y) ** 2 / 2
        >>> args = (model, loss, jnp.zeros(2), jnp.eye(2), jnp.zeros(2))
        >>> round(float(hessian_trace(*args, key=jax.random.key(0)).value), 4)
        1.0

    References:
        arXiv:2201.08025, appendix (the study's measures).
    """
    operator = hessian(apply_fn, loss_fn, params, x, y, batch_size=batch_size)
    return linalg.trace(operator, key=key, num_samples=num_samples)


def hessian_frobenius_norm(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    params: Params,
    x: PyTree[Num[Array, "n ..."]],
    y: PyTree[Num[Array, "n ..."]],
    *,
    key: KeyArray,
    num_samples: int = 16,
    batch_size: int | None = None,
) -> Estimate:
    r"""Estimate the Frobenius norm of the Hessian of the mean loss.

    .. math:: |H|_F = \sqrt{\textstyle \sum_i \lambda_i^2}

    A minimum where SGD with batches of ``b`` and learning rate ``eta`` is stable has
    ``|H|_F <= O(sqrt(b) / eta)``.

    Args:
        apply_fn: The model, ``apply_fn(params, x) -> outputs[n, ...]``.
        loss_fn: ``loss_fn(outputs, targets) -> losses[n]``.
        params: Parameters at which it is taken.
        x: Inputs ``[n, ...]``.
        y: Targets ``[n, ...]``.
        key: Probes.
        num_samples: As for `linalg.frobenius_norm`; 10 in the published study.
        batch_size: As for `curvature.hessian`.

    Returns:
        As `linalg.frobenius_norm`.

    Raises:
        ValueError: As for `curvature.hessian` and `linalg.frobenius_norm`.

    Memory:
        As for `linalg.frobenius_norm`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = lambda w, x: x @ w
        >>> loss = lambda outputs, y: (outputs - y) ** 2
        >>> args = (model, loss, jnp.zeros(2), jnp.eye(2), jnp.zeros(2))
        >>> found = hessian_frobenius_norm(*args, key=jax.random.key(0))
        >>> round(float(found.value), 4)
        1.4142

    References:
        arXiv:2201.08025, appendix; Wu, Wang & Su, arXiv:2207.02628, theorem 3.3.
    """
    operator = hessian(apply_fn, loss_fn, params, x, y, batch_size=batch_size)
    return linalg.frobenius_norm(operator, key=key, num_samples=num_samples)


def effective_dimension(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    params: Params,
    x: PyTree[Num[Array, "n ..."]],
    y: PyTree[Num[Array, "n ..."]],
    *,
    key: KeyArray,
    regularization: Real[ArrayLike, ""] = 1.0,
    num_probes: int = 8,
    num_iterations: int | None = None,
    batch_size: int | None = None,
) -> linalg.SpectralSum:
    r"""Estimate the effective dimension of the generalised Gauss-Newton matrix.

    .. math:: \sum_i \frac{\lambda_i}{\lambda_i + \lambda}

    over all eigenvalues of `curvature.ggn`, which is positive semi-definite for a loss
    that is convex in the outputs, so that every term lies in ``[0, 1)``. The published
    study takes the Hessian, whose negative eigenvalues give negative terms or poles,
    and the Ritz values of one Lanczos run without their weights.

    Args:
        apply_fn: The model, ``apply_fn(params, x) -> outputs[n, ...]``.
        loss_fn: ``loss_fn(outputs, targets) -> losses[n]``.
        params: Parameters at which it is taken.
        x: Inputs ``[n, ...]``.
        y: Targets ``[n, ...]``.
        key: Probes.
        regularization: Positive ``lambda``, in the units of the eigenvalues; 1 in the
            study.
        num_probes: As for `linalg.spectral_density`.
        num_iterations: As for `linalg.spectral_density`; by default ``min(p, 24)``.
        batch_size: As for `curvature.hessian`.

    Returns:
        As `linalg.effective_dimension`.

    Raises:
        ValueError: As for `curvature.ggn` and `linalg.effective_dimension`.

    Memory:
        As for `linalg.spectral_density`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = lambda w, x: x @ w
        >>> loss = lambda outputs, y: (outputs - y) ** 2
        >>> args = (model, loss, jnp.zeros(2), jnp.eye(2), jnp.zeros(2))
        >>> round(float(effective_dimension(*args, key=jax.random.key(0)).value), 4)
        1.0

    References:
        arXiv:2201.08025, appendix; Maddox, Benton & Wilson, arXiv:2003.02139.
    """
    check_positive("regularization", regularization)
    operator = ggn(apply_fn, loss_fn, params, x, y, batch_size=batch_size)
    if num_iterations is None:
        num_iterations = min(linalg.dimension(operator), 24)
    return linalg.effective_dimension(
        operator,
        regularization,
        key=key,
        num_probes=num_probes,
        num_iterations=num_iterations,
    )


def fisher_rao(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    params: Params,
    x: PyTree[Num[Array, "n ..."]],
    y: PyTree[Num[Array, "n ..."]],
    *,
    matrix: Literal["ggn", "empirical_fisher", "hessian"] = "ggn",
    batch_size: int | None = None,
) -> Float[Array, ""]:
    r"""Compute the squared Fisher-Rao norm of the parameters.

    .. math:: t^\top F t, \quad F = \frac{1}{n} \sum_i J_i^\top
        \nabla^2_f \ell(f_i, y_i) \, J_i

    which is the Fisher information where the loss is the negative log-likelihood:
    cross-entropy, or *half* the squared error. The paper's empirical form has
    ``E = (1/n) sum_i g_i g_i^T`` in its place; for a ReLU network of ``D`` layers
    without biases ``t^T E t = (D^2 / n) sum_i <dl_i/df_i, f_i>^2``. The published
    study has the Hessian, which is neither and may be negative.

    Args:
        apply_fn: The model, ``apply_fn(params, x) -> outputs[n, ...]``.
        loss_fn: ``loss_fn(outputs, targets) -> losses[n]``.
        params: Parameters ``t``.
        x: Inputs ``[n, ...]``.
        y: Targets ``[n, ...]``.
        matrix: "ggn" (``F``), "empirical_fisher" (``E``), or "hessian" (as in the
            study).
        batch_size: As for `curvature.hessian`.

    Returns:
        The square of the norm; one product.

    Raises:
        ValueError: `matrix` is unknown, or as for `curvature.hessian`.

    Memory:
        Activations of one chunk.

    Example:
        >>> import jax.numpy as jnp
        >>> model = lambda w, x: x * w
        >>> loss = lambda outputs, y: (outputs - y) ** 2 / 2
        >>> args = (model, loss, jnp.array(3.0), jnp.ones(2), jnp.zeros(2))
        >>> float(fisher_rao(*args))
        9.0
        >>> float(fisher_rao(*args, matrix="empirical_fisher"))
        81.0

    References:
        Liang et al., Fisher-Rao metric, geometry, and complexity of neural networks,
        arXiv:1711.01530, definition 2 and theorem 3.1.
    """
    check_word("matrix", matrix, tuple(_MATRICES))
    build = _MATRICES[matrix]
    operator = build(apply_fn, loss_fn, params, x, y, batch_size=batch_size)
    params = jax.tree.map(jnp.asarray, params)
    return dot(params, operator.mv(params))


def shannon_entropy(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    params: Params,
    x: PyTree[Num[Array, "n ..."]],
    y: PyTree[Num[Array, "n ..."]],
    *,
    batch_size: int | None = None,
) -> Float[Array, ""]:
    r"""Compute the mean entropy of the predicted class probabilities.

    .. math:: -\frac{1}{n} \sum_i \sum_k p_{ik} \log p_{ik}, \quad
        p_i = \operatorname{softmax}(f(t, x_i))

    in nats, between 0 (certain) and ``log k``. It is no property of the landscape, but
    stands among the measures of the published study.

    Args:
        apply_fn: The model; classes on the last axis of its outputs. Further axes
            (positions) are averaged over.
        loss_fn: Not used, but checked: every measure has the same arguments.
        params: Parameters ``t``.
        x: Inputs ``[n, ...]``.
        y: Targets ``[n, ...]``; not used.
        batch_size: Examples per chunk and device; None takes all at once.

    Returns:
        The entropy.

    Raises:
        ValueError: Outputs have fewer than two classes, or as for `curvature.hessian`.

    Memory:
        Activations of one chunk.

    Example:
        >>> import jax.numpy as jnp
        >>> model = lambda w, x: x @ w
        >>> loss = lambda outputs, y: jnp.sum((outputs - y) ** 2, axis=-1)
        >>> args = (model, loss, jnp.zeros((3, 2)), jnp.ones((5, 3)), jnp.zeros((5, 2)))
        >>> round(float(shannon_entropy(*args)), 4)
        0.6931

    References:
        arXiv:2201.08025, appendix; Pereyra et al., arXiv:1701.06548.
    """
    loss = prepare(apply_fn, loss_fn, params, x, y, batch_size)
    outputs = jax.eval_shape(apply_fn, params, x)
    shape = getattr(outputs, "shape", ())
    if len(shape) < 2 or shape[-1] < 2:
        was = f"shape {shape}" if hasattr(outputs, "shape") else type(outputs).__name__
        raise ValueError(
            "`apply_fn` must return one array with at least two classes on its last "
            f"axis, but returned {was}. For one logit, return it beside a zero."
        )
    return _shannon_entropy(loss, params, x, y)


@functools.partial(jax.jit, static_argnums=0)
def _shannon_entropy(loss: MeanLoss, params, x, y):
    def entropies(x, _):
        outputs = loss.apply_fn(params, x)
        logits = outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))
        log_p = jax.nn.log_softmax(logits)
        p = jnp.exp(log_p)
        terms = -p * jnp.where(p > 0, log_p, 0)  # a logit of minus infinity adds 0
        entropy = jnp.sum(terms, axis=-1)
        return jnp.mean(entropy, axis=range(1, entropy.ndim))

    return loss.mean(entropies, x, y)
