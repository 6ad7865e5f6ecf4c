"""The regression optimum: stationary, not improved by descent, thresholds bracketed."""

import numpy as np
import pytest
from scipy.optimize import minimize

from jaxtheory.collapse.theory import regression_optimum

rng = np.random.default_rng(0)
TARGETS = rng.normal(size=(30, 3)) @ np.diag([2.0, 1, 0.5]) + [1.0, -2, 0]


def objective(w, h, b, weight_decay, feature_decay, bias):
    """Its value and its gradient in W, H and b."""
    error = (h @ w.T + b - TARGETS) / 30
    value = 15 * np.sum(error**2) + feature_decay / 60 * np.sum(h**2)
    gradients = (
        error.T @ h + weight_decay * w,
        error @ w + feature_decay / 30 * h,
        error.sum(0) * bias,
    )
    return value + weight_decay / 2 * np.sum(w**2), gradients


@pytest.mark.parametrize("decays", [(5e-2, 1e-2), (0.8, 0.9)])
@pytest.mark.parametrize("bias", [True, False])
def test_descent_ends_there(decays, bias):
    found = regression_optimum(
        TARGETS, weight_decay=decays[0], feature_decay=decays[1], bias=bias
    )

    def split(flat):
        b = flat[-3:] if bias else np.zeros(3)
        return flat[:12].reshape(3, 4), flat[12:132].reshape(30, 4), b

    def flat_objective(flat):
        value, gradients = objective(*split(flat), *decays, bias)
        return value, np.concatenate([g.ravel() for g in gradients])

    start = np.random.default_rng(1).normal(size=135)
    options = {"maxiter": 5000, "ftol": 1e-16, "gtol": 1e-9}
    end = minimize(flat_objective, start, jac=True, method="L-BFGS-B", options=options)
    w, h, b = split(end.x)
    np.testing.assert_allclose(found.objective, end.fun, rtol=1e-10)
    np.testing.assert_allclose(found.classifier_gram, w @ w.T, atol=1e-6)
    np.testing.assert_allclose(found.fitted, h @ w.T + b, atol=1e-5)
    assert found.rank == np.sum(np.linalg.svd(w)[1] > 1e-4)


def test_a_direction_is_given_up_exactly_at_its_scale():
    scales = np.linalg.svd(TARGETS - TARGETS.mean(0))[1] / np.sqrt(30)
    for factor, rank in [(0.98, 3), (1.02, 2)]:
        decay = factor * scales[-1]
        found = regression_optimum(TARGETS, weight_decay=decay, feature_decay=decay)
        assert found.rank == rank


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: regression_optimum(
                TARGETS[:, 0], weight_decay=1.0, feature_decay=1.0
            ),
            r"`targets` must be a matrix.*\(30,\)",
        ),
        (
            lambda: regression_optimum(
                TARGETS * np.inf, weight_decay=1.0, feature_decay=1.0
            ),
            r"`targets` must be a matrix \[n, t\] of finite numbers",
        ),
        (
            lambda: regression_optimum(TARGETS, weight_decay=0.0, feature_decay=1.0),
            r"`weight_decay` must be a positive, finite number",
        ),
    ],
)
def test_bad_input_names_the_fix(call, message, user_land):
    with pytest.raises(ValueError, match=message):
        call()
