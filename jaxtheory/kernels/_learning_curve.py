"""Average-case learning curves of kernel regression from its eigenvalues alone."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float, Real

from jaxtheory.batching import check_number
from jaxtheory.kernels._checks import host_array

# Enough for Newton's method in the logarithm, and then for bisection over 2^11 octaves.
_MOST_ITERATIONS = 200


class LearningCurve(NamedTuple):
    """What theory says of kernel regression on random training sets of size ``n``.

    Axes ``*r`` are those of `num_examples`. All float64, of NumPy.

    Attributes:
        test_error: Expected squared error on new examples, against the target function.
            Summed over outputs.
        noisy_test_error: The same against new labels as noisy as those of training:
            `test_error` plus the noise variance.
        train_error: Expected mean squared error on the (noisy) training labels.
        learnabilities: ``L_i``, the share of eigenfunction ``i`` that is learnt, in
            ``[0, 1]``; ``[*r, p]``. They sum to ``n - ridge / kappa`` (times
            multiplicities): without ridge to ``n``, at most ``p``.
        kappa: The effective ridge: eigenvalues above it are learnt.
        overfitting: ``E_0 >= 1``, the factor by which fitting noise and unlearnt modes
            raises the error; infinite at the peak of double descent.
    """

    test_error: Float[np.ndarray, "*r"]
    noisy_test_error: Float[np.ndarray, "*r"]
    train_error: Float[np.ndarray, "*r"]
    learnabilities: Float[np.ndarray, "*r p"]
    kappa: Float[np.ndarray, "*r"]
    overfitting: Float[np.ndarray, "*r"]


def learning_curve(
    eigenvalues: Float[ArrayLike, " p"],
    coefficients: Float[ArrayLike, "p ..."],
    *,
    num_examples: Real[ArrayLike, "*r"] | Sequence[int],
    ridge: Real[ArrayLike, ""] = 0.0,
    noise_variance: Real[ArrayLike, ""] = 0.0,
    multiplicities: Real[ArrayLike, " p"] | None = None,
) -> LearningCurve:
    r"""Predict the test error of kernel regression at any number of examples.

    For `kernel_regression` (the same `ridge`, on the *sum* of squared errors) with a
    kernel of eigenvalues ``lambda_i``, on ``n`` examples drawn independently of a
    target ``sum_i v_i phi_i`` plus noise of variance ``s2``:

    - ``sum_i lambda_i / (lambda_i + kappa) + ridge / kappa = n`` defines ``kappa``
    - ``L_i = lambda_i / (lambda_i + kappa)``, ``E_0 = n / (n - sum_i L_i^2)``
    - noisy test error ``E_0 (sum_i (1 - L_i)^2 v_i^2 + s2)``; less ``s2`` the clean one
    - train error ``(ridge / (n kappa))^2`` times the noisy test error

    Exact in the limit of many examples and eigenvalues for random features that are as
    good as Gaussian, and in practice within a few percent down to tens of examples.
    *Small domains* of ``N`` points are not in the theory. The error that it predicts is
    then that over the whole domain, training points included; over the others alone it
    is up to ``N / (N - n)`` times as large. On the 256 corners of a cube, with the
    kernel of a ReLU network and drawing without replacement, it stayed within 6 % of
    the prediction without noise, while noise did less harm than predicted (5 to 20 %
    less error at ``n = 64``, 25 to 43 % at 128); drawing *with replacement* made the
    error with a ridge up to 2 times that predicted.

    With more examples than eigenvalues and no ridge the target is learnt exactly
    (``kappa = 0``), and noise leaves the clean error ``s2 p / (n - p)``.

    Computed on the host in float64, whatever JAX's default precision is: not for use
    under `jax.jit`.

    Args:
        eigenvalues: Those of the kernel as an integral operator under the distribution
            of inputs, not negative; of a Gram matrix on ``N`` examples, its own over
            ``N`` (`target_spectrum`).
        coefficients: ``v_i``, or ``[p, k]`` for ``k`` outputs. Of an eigenvalue that
            stands for several eigenfunctions, the root of their sum of squares.
        num_examples: ``n``, a positive number or a vector of them.
        ridge: Ridge, not negative.
        noise_variance: ``s2``, summed over outputs.
        multiplicities: How many eigenfunctions each eigenvalue stands for; None is 1.

    Returns:
        The curve, see `LearningCurve`.

    Raises:
        ValueError: Shapes do not fit, a number is negative or not finite, or something
            is traced by a JAX transformation.

    Memory:
        A few matrices ``[r, p]``.

    Example:
        >>> import numpy as np
        >>> from jaxtheory import kernels
        >>> i = np.arange(1.0, 1001)
        >>> curve = kernels.learning_curve(
        ...     i**-1.5, 1 / i, num_examples=[50, 100, 200], ridge=0.01
        ... )
        >>> curve.test_error.round(4).tolist()
        [0.0529, 0.0253, 0.0114]

    References:
        Simon, Dickens, Karkada, DeWeese, arXiv:2110.03922, section 4 (this form);
        Bordelon, Canatar, Pehlevan, arXiv:2002.02561; Jacot et al., arXiv:2006.09796.
    """
    lam, power, weights = _check_spectrum(eigenvalues, coefficients, multiplicities)
    n = _check_num_examples(num_examples)
    ridge = _check_level("ridge", ridge)
    noise = _check_level("noise_variance", noise_variance)
    kappa = [_solve_kappa(lam, weights, one, ridge) for one in n.ravel()]
    kappa = np.array(kappa).reshape(n.shape)
    level = kappa[..., None]
    # An eigenvalue of zero is not learnt, also where kappa is zero.
    total = np.where(lam > 0, lam + level, 1)
    learnt, unlearnt = lam / total, np.where(lam > 0, level / total, 1)
    # What the ridge takes of n; without kappa, what no eigenvalue is there to take.
    spare = np.maximum(n - np.sum(weights[lam > 0]), 0.0)
    taken = np.where(kappa > 0, ridge / np.where(kappa > 0, kappa, 1), spare)
    with np.errstate(divide="ignore", invalid="ignore"):
        # n - sum L^2, of which the constraint has taken n - sum L.
        overfitting = n / (taken + np.sum(weights * learnt * unlearnt, axis=-1))
        noisy = overfitting * (np.sum(unlearnt**2 * power, axis=-1) + noise)
        # Nothing to overfit at the peak of double descent: 0 times infinity.
        noisy = np.where(np.isnan(noisy), 0.0, noisy)
        train = np.where(taken > 0, (taken / n) ** 2 * noisy, 0.0)
    return LearningCurve(noisy - noise, noisy, train, learnt, kappa, overfitting)


def _solve_kappa(lam, weights, n, ridge):
    """The root of ``sum w lam / (lam + kappa) + ridge / kappa = n``; 0 if none.

    Newton's method for the logarithm of the left side in that of kappa, in which power
    laws are straight lines, with a bracket that it never leaves.
    """
    lam, weights = lam[(lam > 0) & (weights > 0)], weights[(lam > 0) & (weights > 0)]
    surplus = np.sum(weights) - n
    if ridge == 0 and surplus <= 0:
        return 0.0
    high = np.log((np.sum(weights * lam) + ridge) / n)
    low = np.log(max(ridge / n, np.min(lam, initial=np.inf) * surplus / n))
    log_kappa = high
    for _ in range(_MOST_ITERATIONS):
        kappa = np.exp(log_kappa)
        share = lam / (lam + kappa)
        taken = ridge / kappa
        total = np.sum(weights * share) + taken
        slope = -np.sum(weights * share * (kappa / (lam + kappa))) - taken
        low, high = (log_kappa, high) if total > n else (low, log_kappa)
        newton = log_kappa - np.log(total / n) * total / slope
        if abs(newton - log_kappa) <= np.finfo(float).eps * max(1, abs(newton)):
            break
        log_kappa = newton if low < newton < high else (low + high) / 2
    return float(np.exp(log_kappa))


def _check_spectrum(eigenvalues, coefficients, multiplicities):
    """Eigenvalues, power of the target in each, and multiplicities, all ``[p]``."""
    lam, v = (
        host_array("eigenvalues", eigenvalues),
        host_array("coefficients", coefficients),
    )
    if lam.ndim != 1 or lam.size == 0:
        raise ValueError(
            f"`eigenvalues` must be a vector of at least one, but has shape {lam.shape}"
            ". For a Gram matrix use `target_spectrum`."
        )
    if np.any(lam < 0):
        raise ValueError(
            "`eigenvalues` must be at least 0, but some are negative. Set those that "
            "are rounding errors to 0 (`np.maximum`)."
        )
    if v.shape[:1] != lam.shape or v.ndim > 2:
        raise ValueError(
            f"`coefficients` must be [p] or [p, k] with p = {lam.size} like "
            f"`eigenvalues`, but has shape {v.shape}."
        )
    weights = np.ones_like(lam)
    if multiplicities is not None:
        weights = host_array("multiplicities", multiplicities)
    if weights.shape != lam.shape or np.any(weights < 0):
        raise ValueError(
            f"`multiplicities` must be {lam.size} numbers of at least 0, one for each "
            f"eigenvalue, but has shape {weights.shape} or negative entries."
        )
    return lam, np.sum(v.reshape(len(v), -1) ** 2, axis=1), weights


def _check_num_examples(num_examples):
    """Numbers of examples as float64."""
    n = host_array("num_examples", num_examples)
    if n.ndim > 1 or np.any(n <= 0):
        raise ValueError(
            "`num_examples` must be a positive number or a vector of them, but has "
            f"shape {n.shape} or entries that are not positive."
        )
    return n


def _check_level(name, value):
    """A number of at least 0 as a float."""
    check_number(name, value, lambda v: 0 <= v < np.inf, "finite and at least 0")
    return float(host_array(name, value))
