"""The table of bounds: what can be computed is, what cannot says why."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from jaxtheory import bounds, plot

RNG = np.random.default_rng(0)
INPUTS = {
    "num_errors": 5,
    "holdout.num_examples": 100,
    "num_examples": 200,
    "delta": 0.05,
    "empirical_risk": 0.02,
    "pac_bayes.empirical_risk": 0.03,
    "kl": 6.0,
    "loss_bound": 1.0,
    "losses": RNG.random((6, 200)),
    "beta": 1e-3,
    "num_points": 6,
    "fractal_dimension.dimension": 1.5,
}
# Eight runs, three pairs, both examples of each.
ERRORS = RNG.integers(0, 2, (8, 3, 2))
PAIRS = {
    "selectors": RNG.integers(0, 2, (8, 3)),
    "predictions": ERRORS,
    "functional_cmi.losses": ERRORS * 1.0,
    "evaluated_cmi.losses": ERRORS * 1.0,
}
DENSE = {"output": {"kernel": np.eye(2, dtype=np.float32)}}


X = RNG.normal(size=(50, 3)).astype(np.float32)
Y = (X[:, 0] > 0).astype(int)


def net(w, x):
    return jnp.stack([-x @ w, x @ w], axis=1)


@pytest.fixture(scope="module")
def found():
    return bounds.table(INPUTS)


def test_bounds_are_those_of_their_functions(found):
    shared = {"num_examples": 200, "loss_bound": 1.0}
    assert found.bounds["holdout"] == bounds.holdout(5, 100, delta=0.05)
    expected = bounds.pac_bayes(0.03, 6.0, num_examples=200, delta=0.05)
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
    assert found.missing["sharpness_dimension"] == ("sharpness_dimension.dimension",)
    assert "params" in found.missing["gaussian_pac_bayes"]
    everything = {*found.bounds, *found.missing, *found.refused}
    assert everything == set(bounds._table._FUNCTIONS)
    lines = found.text().splitlines()
    assert len(lines) == 1 + len(everything)
    (line,) = [one for one in lines if one.startswith("pac_bayes ")]
    assert line.split()[3] == "correlate"
    assert line.endswith("2 taken on trust")
    (line,) = [one for one in lines if one.startswith("sharpness_dimension")]
    assert line.endswith("not given: sharpness_dimension.dimension")


def test_numbers_of_a_line_stay_apart(found):
    small = found.bounds["holdout"]._replace(value=0.05696, empirical_risk=0.0003998)
    line = found._replace(bounds={"small": small}).text().splitlines()[1]
    assert line.split()[1:3] == ["0.05696", "0.0003998"]


def test_inputs_that_a_bound_refuses_are_reported():
    found = bounds.table(INPUTS | {"losses": np.full((6, 200), 1.5)})
    assert "finite_set" not in found.bounds
    assert "`losses` must lie between 0 and" in found.refused["finite_set"]
    assert "refused: `losses`" in found.text()


def test_bounds_from_norms_kernels_and_pairs():
    y = np.arange(40) % 2
    x = np.eye(2, dtype=np.float32)[y] - 0.5
    signs = 2.0 * y - 1
    kernel = np.eye(40) / 2
    given = {"params": DENSE, "x": x, "y": y, "layers": ("output",), "delta": 0.05}
    given |= {"margins": np.ones(40), "rademacher": 0.1, "spectral.quantile": 0.5}
    given |= {"kernel": kernel, "ntk_complexity.y": signs} | PAIRS
    found = bounds.table(given).bounds
    delta = {"delta": 0.05}
    dense = {"layers": ("output",), **delta}
    errors, runs = ERRORS * 1.0, PAIRS["selectors"]
    assert found == {
        "margin_distribution": bounds.margin_distribution(np.ones(40), 0.1, **delta),
        "path_norm": bounds.path_norm(DENSE, x, y, **dense),
        "spectral": bounds.spectral(DENSE, x, y, quantile=0.5, **dense),
        "ntk_complexity": bounds.ntk_complexity(kernel, signs, **delta),
        "functional_cmi": bounds.functional_cmi(ERRORS, errors, runs),
        "evaluated_cmi": bounds.evaluated_cmi(errors, runs),
    }


def test_bound_of_a_file(tmp_path):
    file = tmp_path / "one"
    given = {
        "apply_fn": lambda w, x: jnp.stack([-x[:, 0] * w, x[:, 0] * w], axis=1),
        "decode": lambda path: jnp.float32(path.read_bytes()[0] - 127),
        "path": file,
        "x": X,
        "y": Y,
        "delta": 0.05,
    }
    assert "`path` must be a file" in bounds.table(given).refused["compression"]
    file.write_bytes(bytes([200]))
    bound = bounds.table(given).bounds["compression"]
    assert bound.certificate
    assert bound.complexity == pytest.approx(np.log(2) * 14)


def test_what_means_something_else_elsewhere_is_not_taken():
    found = bounds.table(INPUTS | {"num_errors": 5, "noise_scales": 0.1})
    assert found.missing["virtual_noise"][1] == "virtual_noise.noise_scales"
    assert "functional_cmi.losses" in found.missing["functional_cmi"]
    assert "evaluated_cmi.losses" in found.missing["evaluated_cmi"]
    # Class indices are targets of no kernel, training examples are not held out.
    found = bounds.table({"num_errors": 5, "num_examples": 200, "delta": 0.05, "y": Y})
    assert found.missing["holdout"] == ("holdout.num_examples",)
    found = bounds.table({"kernel": np.eye(50), "delta": 0.05, "y": Y})
    assert found.missing["ntk_complexity"] == ("ntk_complexity.y",)
    assert "not given: ntk_complexity.y" in found.text()


def test_names_for_one_bound_alone_are_those_of_arguments():
    # A wrong one would let two meanings be mixed.
    for argument, names in bounds._table._OWN.items():
        for name in names:
            function = bounds._table._FUNCTIONS[name]
            assert argument in inspect.signature(function).parameters


def test_wrong_shapes_are_refused_by_each_bound(user_land):
    path, pairs = INPUTS["losses"], PAIRS["evaluated_cmi.losses"]
    found = bounds.table(INPUTS | PAIRS | {"losses": pairs})
    assert "`losses` must be the losses of at least 2" in found.refused["finite_set"]
    assert "[r, n], but has shape (8, 3, 2)" in found.refused["topological"]
    assert {"functional_cmi", "evaluated_cmi"} <= {*found.bounds}
    mixed = {"functional_cmi.losses": path, "evaluated_cmi.losses": path}
    found = bounds.table(INPUTS | PAIRS | mixed)
    for name in ("functional_cmi", "evaluated_cmi"):
        assert "[t, n, 2], but has shape (6, 200)" in found.refused[name]
    assert {"finite_set", "topological"} <= {*found.bounds}
    wrong = {"kernel": np.eye(3), "ntk_complexity.y": Y, "margins": np.ones((5, 2))}
    wrong |= {"rademacher": 0.1, "params": DENSE, "x": X, "y": Y, "delta": 0.05}
    found = bounds.table(wrong | {"layers": ("output",)})
    assert "`y` must have shape [3]" in found.refused["ntk_complexity"]
    assert "but has shape (5, 2)" in found.refused["margin_distribution"]
    assert {"path_norm", "spectral"} <= {*found.refused}


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
    with pytest.raises(ValueError, match=r"'form' is, .* 'evaluated_cmi\.form' or"):
        bounds.table({"form": "kl"})
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
