"""Thresholds against the optimizers themselves: optax, iterated on a quadratic."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtheory import curvature

ETA, B, WD = 0.1, 0.9, 0.5


def decoupled(transform):
    """As `optax.adamw` is put together: decay between the momentum and the rate."""
    return optax.chain(transform, optax.add_decayed_weights(WD), optax.scale(-ETA))


def coupled(optimizer):
    return optax.chain(optax.add_decayed_weights(WD), optimizer)


def trace(nesterov):
    return optax.trace(B, nesterov=nesterov)


# From a start of 1e-30 the second moments are nothing against this epsilon: it is the
# preconditioner, and does not change.
FROZEN: dict[str, Any] = {"b1": B, "eps": 1.0}
EMA = optax.ema(B, debias=False)
SGD, HEAVY = optax.sgd(ETA), optax.sgd(ETA, momentum=B)
NESTEROV = optax.sgd(ETA, momentum=B, nesterov=True)
OPTIMIZERS = {
    "gradient descent": ("gradient_descent", {}, SGD),
    "heavy ball": ("heavy_ball", {}, HEAVY),
    "nesterov": ("nesterov", {}, NESTEROV),
    "ema": ("ema_momentum", {}, optax.chain(EMA, optax.scale(-ETA))),
    "decay": ("gradient_descent", {"decay": "decoupled"}, coupled(SGD)),
    "coupled": ("gradient_descent", {"decay": "coupled"}, coupled(SGD)),
    "heavy, coupled": ("heavy_ball", {"decay": "coupled"}, coupled(HEAVY)),
    "heavy, decoupled": ("heavy_ball", {"decay": "decoupled"}, decoupled(trace(False))),
    "nesterov, coupled": ("nesterov", {"decay": "coupled"}, coupled(NESTEROV)),
    "nesterov, decoupled": (
        "nesterov",
        {"decay": "decoupled"},
        decoupled(trace(True)),
    ),
    "ema, decoupled": ("ema_momentum", {"decay": "decoupled"}, decoupled(EMA)),
    "ema, coupled": (
        "ema_momentum",
        {"decay": "coupled"},
        optax.chain(optax.add_decayed_weights(WD), EMA, optax.scale(-ETA)),
    ),
    "adam": ("adam", {}, optax.adam(ETA, **FROZEN)),
    "adamw": (
        "adam",
        {"decay": "decoupled"},
        optax.adamw(ETA, weight_decay=WD, **FROZEN),
    ),
    "nadam": ("nadam", {}, optax.nadam(ETA, **FROZEN)),
    "nadamw": (
        "nadam",
        {"decay": "decoupled"},
        optax.nadamw(ETA, weight_decay=WD, **FROZEN),
    ),
}


def threshold(method, options):
    changes: dict[str, Any] = {"momentum": None if method == "gradient_descent" else B}
    if options:
        changes |= {"weight_decay": WD, **options}
    return curvature.stability_threshold(method, learning_rate=ETA, **changes)


def growth(optimizer, sharpness, num_steps=600):
    """How the iterate grows over the second half of steps on ``sharpness / 2 w^2``."""

    def step(carry, _):
        w, state = carry
        updates, state = optimizer.update(sharpness * w, state, w)
        return (w + updates, state), jnp.abs(w + updates)

    w = jnp.array(1e-30)
    _, path = jax.lax.scan(step, (w, optimizer.init(w)), None, length=num_steps)
    half = jnp.max(path[num_steps // 2 : num_steps // 2 + 20])
    return jnp.max(path[-20:]) / (half + 1e-60)  # in one step to 0 is possible


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optax_shrinks_just_below_and_grows_just_above(name, x64):
    method, options, optimizer = OPTIMIZERS[name]
    edge = threshold(method, options).full_batch
    at = jax.jit(jax.vmap(lambda h: growth(optimizer, h)))
    below, above = at(jnp.array([0.999, 1.001]) * edge)
    assert below < 1 < above
    # Far below nothing else has left the unit disc either.
    assert np.all(at(jnp.linspace(0.05, 0.95, 7) * edge) < 1)


def test_the_numbers_of_the_formulas():
    """As they are written in the papers."""
    edge = lambda method, **options: threshold(method, options).full_batch
    rates = {"weight_decay": WD, "decay": "decoupled"}
    assert edge("adam") == pytest.approx(38 / ETA)
    expected = (2 - ETA * WD) * (1 + B) / ((1 - B) * ETA)
    assert edge("adam", **rates) == pytest.approx(expected)
    expected = 2 * (1 + B) / ((1 - B) * (1 + 2 * B) * ETA)
    assert edge("nadam") == pytest.approx(expected)
    expected = (2 + 2 * B) / (ETA * (1 + 2 * B)) - WD
    assert edge("nesterov", decay="coupled") == pytest.approx(expected)


RADIUS = 0.2


def sam_edge(gradient_norm, **changes):
    edge = curvature.stability_threshold(
        "sam", learning_rate=ETA, radius=RADIUS, gradient_norm=gradient_norm, **changes
    )
    return edge.full_batch


def sam_step(h, decay=0.0):
    """One step of optax's SAM on the quadratic with curvatures `h`."""
    optimizer = optax.contrib.sam(
        optax.chain(optax.add_decayed_weights(decay), optax.sgd(ETA)),
        optax.chain(optax.contrib.normalize(), optax.sgd(RADIUS)),
        opaque_mode=True,
    )

    def step(w):
        state = optimizer.init(w)
        grad_fn = lambda w, _: h * w
        return w + optimizer.update(h * w, state, w, grad_fn=grad_fn)[0]

    return step


@pytest.mark.parametrize("decay", [0.0, WD])
def test_sam_contracts_orthogonal_to_the_gradient_below_its_threshold(decay, x64):
    """The Jacobian of the map itself, at a point on the first axis."""
    g = 0.3
    edge = sam_edge(g, weight_decay=decay)
    factors = []
    for ratio in (0.999, 1.0, 1.001):
        h = jnp.array([0.7, ratio * edge])
        jacobian = jax.jacobian(sam_step(h, decay))(jnp.array([g / 0.7, 0.0]))
        assert abs(jacobian[0, 1]) < 1e-12
        factors.append(float(jacobian[1, 1]))
    assert -1 < factors[0] < 1
    assert factors[1] == pytest.approx(-1, abs=1e-12)
    assert factors[2] < -1


def test_sam_along_the_gradient_orbits_where_its_threshold_is_the_curvature(x64):
    h = jnp.array([12.0])  # 0.6 of 2 / eta
    step = sam_step(h)
    w = jax.lax.fori_loop(0, 200, lambda _, w: step(w), jnp.ones(1))
    np.testing.assert_allclose(step(w), -w, rtol=1e-12)
    gradient_norm = jnp.linalg.norm(h * w)
    np.testing.assert_allclose(sam_edge(gradient_norm), h[0], rtol=1e-12)
    # The usual way to write it, which cancels for a small radius.
    root = (1 + 8 * RADIUS / (ETA * gradient_norm)) ** 0.5
    usual = gradient_norm / (2 * RADIUS) * (root - 1)
    np.testing.assert_allclose(usual, h[0], rtol=1e-12)


def test_minibatch_forms():
    heavy = threshold("heavy_ball", {})
    assert heavy.minibatch_low == pytest.approx(2 * (1 - B) / ETA)
    assert heavy.minibatch_high == heavy.full_batch
    plain = threshold("gradient_descent", {})
    assert plain == pytest.approx((2 / ETA,) * 3)
    # The exponential average is heavy ball with another learning rate.
    ema = threshold("ema_momentum", {})
    same = curvature.stability_threshold(
        "heavy_ball", learning_rate=ETA * (1 - B), momentum=B
    )
    assert ema == pytest.approx(same)
    for unknown in (
        threshold("nesterov", {}),
        threshold("adam", {}),
        threshold("heavy_ball", {"decay": "coupled"}),
    ):
        assert math.isnan(unknown.minibatch_low)
        assert math.isnan(unknown.minibatch_high)


def test_a_schedule_under_jit(user_land):
    """Along a warm-up from 0, where the threshold is infinite and not NaN."""

    @jax.jit
    def along(eta):
        adamw = curvature.stability_threshold(
            "adam", learning_rate=eta, momentum=B, weight_decay=WD
        )
        sam = curvature.stability_threshold(
            "sam", learning_rate=eta, radius=RADIUS, gradient_norm=2 * eta + 0.1
        )
        return adamw.full_batch, sam.full_batch

    adamw, sam = jax.vmap(along)(jnp.array([0.0, ETA]))
    assert adamw[0] == sam[0] == jnp.inf
    expected = threshold("adam", {"decay": "decoupled"}).full_batch
    np.testing.assert_allclose(adamw[1], expected, rtol=1e-5)
    np.testing.assert_allclose(sam[1], sam_edge(2 * ETA + 0.1), rtol=1e-5)


BAD = {
    "lion": ({"method": "lion"}, "was 'lion'. Sign descent, Lion, .* no threshold"),
    "unknown": ({"method": "adagrad"}, "`method` must be one of .* was 'adagrad'"),
    "decay": ({"weight_decay": -0.1}, "`weight_decay` must be at least 0"),
    "too much": ({"weight_decay": 20.0}, r"must be below 2 / learning_rate .* 20\.0"),
    "form": ({"decay": "both"}, "`decay` must be 'decoupled' or 'coupled', .* 'both'"),
    "coupled": ({"decay": "coupled"}, "`decay` must be 'decoupled' for 'adam'"),
    "radius": ({"radius": 0.1}, "`radius` must be left out for 'adam'"),
    "norm": ({"gradient_norm": 1.0}, "`gradient_norm` must be left out for 'adam'"),
    "no radius": (
        {"method": "sam", "momentum": None, "gradient_norm": 1.0},
        "`radius` must be positive and finite for 'sam', but was None",
    ),
    "no norm": (
        {"method": "sam", "momentum": None, "radius": 1.0, "gradient_norm": 0.0},
        "`gradient_norm` must be positive and finite for 'sam', but was 0.0",
    ),
    "sam, momentum": ({"method": "sam"}, "`momentum` must be left out for 'sam'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, user_land):
    changes, message = BAD[case]
    arguments = {"method": "adam", "learning_rate": ETA, "momentum": B} | changes
    with pytest.raises(ValueError, match=message):
        curvature.stability_threshold(arguments.pop("method"), **arguments)
