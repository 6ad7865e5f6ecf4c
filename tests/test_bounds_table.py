"""The table of bounds: what can be computed is, what cannot says why."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from jaxtheory import bounds, plot

RNG = np.random.default_rng(0)
INPUTS = {
    "num_errors": 5,
    "num_examples": 200,
    "delta": 0.05,
    "empirical_risk": 0.02,
    "kl": 6.0,
    "loss_bound": 1.0,
    "losses": RNG.random((6, 200)),
    "beta": 1e-3,
    "num_points": 6,
    "fractal_dimension.dimension": 1.5,
}


X = RNG.normal(size=(50, 3)).astype(np.float32)
Y = (X[:, 0] > 0).astype(int)


def net(w, x):
    return jnp.stack([-x @ w, x @ w], axis=1)


@pytest.fixture(scope="module")
def found():
    return bounds.table(INPUTS)


def test_bounds_are_those_of_their_functions(found):
    shared = {"num_examples": 200, "loss_bound": 1.0}
    assert found.bounds["holdout"] == bounds.holdout(5, 200, delta=0.05)
    expected = bounds.pac_bayes(0.02, 6.0, num_examples=200, delta=0.05)
    assert found.bounds["pac_bayes"] == expected
    expected = bounds.random_set_stability(0.02, 1e-3, num_points=6, **shared)
    assert found.bounds["random_set_stability"] == expected
    expected = bounds.fractal_dimension(0.02, 1.5, **shared)
    assert found.bounds["fractal_dimension"] == expected
    expected = bounds.finite_set(INPUTS["losses"], loss_bound=1.0, delta=0.05)
    assert found.bounds["finite_set"] == expected


def test_values_are_in_order_and_the_rest_is_named(found):
    values = [bound.value for bound in found.bounds.values()]
    assert values == sorted(values)
    assert found.missing["sharpness_dimension"] == ("dimension",)
    assert "params" in found.missing["gaussian_pac_bayes"]
    everything = {*found.bounds, *found.missing, *found.refused}
    assert everything == set(bounds._table._FUNCTIONS)
    lines = found.text().splitlines()
    assert len(lines) == 1 + len(everything)
    (line,) = [one for one in lines if one.startswith("pac_bayes ")]
    assert line.split()[3] == "correlate"
    assert line.endswith("2 taken on trust")
    (line,) = [one for one in lines if one.startswith("sharpness_dimension")]
    assert line.endswith("not given: dimension")


def test_inputs_that_a_bound_refuses_are_reported():
    found = bounds.table(INPUTS | {"losses": np.full((6, 200), 1.5)})
    assert "finite_set" not in found.bounds
    assert "`losses` must lie between 0 and" in found.refused["finite_set"]
    assert "refused: `losses`" in found.text()


def test_own_names_go_first_and_keys_differ():
    given = {
        "apply_fn": net,
        "params": jnp.ones(3),
        "prior_params": jnp.zeros(3),
        "x": X,
        "y": Y,
        "scales": 0.5,
        "posterior_scales": 0.5,
        "num_samples": 20,
        "delta": 0.05,
        "prior_bound.delta": 0.5,
        "key": jax.random.key(0),
    }
    found = bounds.table(given).bounds
    assert {*found} == {"prior_bound", "gaussian_pac_bayes"}
    assert found["prior_bound"].delta == 0.5
    assert found["gaussian_pac_bayes"].delta == 0.05


def test_unknown_names_are_refused(user_land):
    with pytest.raises(ValueError, match="'num_example' is none"):
        bounds.table({"num_example": 3})
    with pytest.raises(ValueError, match=r"'holdout\.kl' is none"):
        bounds.table({"holdout.kl": 3})
    given = {"apply_fn": net, "prior_params": jnp.zeros(3), "x": X, "y": Y}
    with pytest.raises(ValueError, match="`key` must be"):
        bounds.table(given | {"scales": 0.5, "num_samples": 2, "delta": 0.05, "key": 0})


# --- the picture


def test_picture_of_a_table(found):
    ax = plot.bounds(found.bounds, risk=0.03, chance=0.5)
    assert [text.get_text() for text in ax.get_yticklabels()] == list(found.bounds)
    for bar, bound in zip(ax.patches, found.bounds.values(), strict=True):
        assert bar.get_width() == pytest.approx(min(bound.value, 1))
        pale = bar.get_alpha() < 1
        assert pale == (bound.value >= 0.5)
        assert (bar.get_hatch() is None) == bound.certificate
    assert [line.get_label() for line in ax.lines] == ["risk 3.0 %", "guessing 50.0 %"]
    low, high = ax.get_ylim()
    assert low > high  # the smallest on top
    own = Figure().subplots()
    assert plot.bounds({"one": found.bounds["holdout"]}, ax=own) is own
    assert own.texts[0].get_text().endswith(" %")


def test_pictures_that_cannot_be(found, user_land):
    with pytest.raises(ValueError, match="`named` must hold something to draw"):
        plot.bounds({})
    with pytest.raises(ValueError, match=r"`named\['a'\]` must be a `Bound`"):
        plot.bounds({"a": 0.3})
    with pytest.raises(ValueError, match=r"`risk` must be in \[0, 1\]"):
        plot.bounds(found.bounds, risk=2.0)
