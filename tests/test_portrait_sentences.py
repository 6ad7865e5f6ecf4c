"""What each section of the portrait says, of numbers made up to be on either side."""

import re

import numpy as np
import pytest
from matplotlib.figure import Figure
from sections_said import NAN, lacks, svg

from jaxtheory.portrait._numbers import compact, percent
from jaxtheory.portrait.sections import (
    BOUNDS,
    CLASS_COSINES,
    COLLAPSE,
    NOISE,
    PATH,
    SEPARATION,
    SIMPLEX_PLANE,
    TRAINING,
)


@pytest.mark.parametrize(
    ("value", "in_percent", "in_short"),
    [
        (0.951, "95.1 %", "0.951"),
        (2e26, "2e+28 %", "2e+26"),
        (NAN, "not finite", "not finite"),
    ],
)
def test_numbers_as_text(value, in_percent, in_short):
    assert (percent(value), compact(value)) == (in_percent, in_short)


# --- training


def training(*, train=(0.9, 0.0), test=(0.9, 0.04), **changes):
    return {
        "steps": [0, 100],
        "loss": {"train": [1.0, 0.25], "test": [1.0, 0.5]},
        "error": {"train": list(train), "test": list(test)},
        "num_params": 5_000,
        "num_train": 300,
        "num_test": 400,
        "num_outputs": 10,
        "regression": False,
        "diverged": False,
    } | changes


@pytest.mark.parametrize(
    ("changes", "expected", "verdict"),
    [
        ({}, "expects interpolation; the training error ends at 0.0 %", "agrees"),
        ({"train": (0.9, 0.1)}, "has not got there: .* at 10.0 %", "measured"),
        ({"num_params": 2_000}, "2,000 .* face 3,000 numbers .*too few", "measured"),
        ({"regression": True, "train": (1.0, 0.004)}, "ends at 0.40 %", "agrees"),
        ({"regression": True, "train": (1.0, 0.2)}, "ends at 20.00 %", "measured"),
        ({"diverged": True, "train": (0.9, 0.7)}, "this run diverged", "measured"),
    ],
)
def test_training(changes, expected, verdict):
    first, second = TRAINING.findings(training(**changes))
    assert re.search(expected, first.text), first.text
    assert (first.verdict, second.verdict) == (verdict, "measured")


def test_training_says_how_sure_the_test_error_is():
    text = TRAINING.findings(training())[1].text
    # sqrt(.04 * .96 / 400) = .0098
    assert "400 fresh examples it errs on 4.0 % (standard error 1.0 %)" in text
    assert "a gap of 4.0 %" in text
    assert "zero first at step 100" in TRAINING.findings(training())[0].text
    assert TRAINING.rows(training())[0] == ("training error", "0.0 %", "loss 0.25")


# --- noise


def noise(*scale, batch_size=50, loss=(1.0, 0.1)):
    return {
        "loss": list(loss),
        "steps": list(range(len(scale))),
        "noise_scale": list(scale),
        "standard_error": [0.5] * len(scale),
        "batch_size": batch_size,
        "num_train": 200,
    }


@pytest.mark.parametrize(
    ("numbers", "expected", "verdict"),
    [
        (noise(4.0, 40.0, 160.0), "from 4 to 160 examples", "agrees"),
        (noise(160.0, 40.0, 4.0), "from 160 to 4 examples", "disagrees"),
        (noise(NAN, 40.0, 61.5), "from 40 to 61.5 examples", "agrees"),
        (noise(40.0, 41.5), "from 40 to 41.5 examples", "measured"),
        (noise(41.5, 40.0), "while the loss went from 1 to 0.1", "measured"),
        (noise(4.0, 160.0, loss=(1.0, 0.9)), "from 1 to 0.9", "measured"),
    ],
)
def test_noise_grows_or_not(numbers, expected, verdict):
    first, _ = NOISE.findings(numbers)
    assert expected in first.text
    assert first.verdict == verdict


def test_noise_beside_the_batch():
    _, batch = NOISE.findings(noise(4.0, 40.0, 60.0, 160.0))
    assert "Batches of 50 are below the noise scale at 50 % of the" in batch.text
    first, full = NOISE.findings(noise(4.0, 40.0, batch_size=200))
    assert first.verdict == "measured"
    assert "Every step uses all 200 examples" in full.text
    assert lacks(NOISE, noise(4.0))
    assert lacks(NOISE, noise(4.0, 5.0, NAN))


# --- collapse


def collapse(*, nc1=(2.0, 0.5, 0.04), nc2=(1.0, 0.4, 0.09), test=0.6, **changes):
    others = {"nc2": list(nc2), "nc3": [1.0, 0.3, 0.05], "nc4": [0.5, 0.0, 0.0]}
    return {
        "steps": [0, 40, 100],
        "train": {"nc1": list(nc1)} | others,
        "test": {"nc1": [2.0, 0.8, test]} | others,
        "interpolates": True,
        "first_zero": 40,
    } | changes


@pytest.mark.parametrize(
    ("changes", "expected", "verdict"),
    [
        ({}, "60 steps .* NC1 0.5 → 0.04, .* 4 of 4 .* layer has collapsed", "agrees"),
        ({"nc1": (2.0, 0.5, 0.3)}, "NC1 0.5 → 0.3.* 4 of 4 .* is far from", "agrees"),
        ({"nc1": (2.0, 0.5, 0.06)}, "4 of 4 .* is close to collapsed", "agrees"),
        ({"nc1": (2.0, 0.5, 0.49)}, "0.49, .* 3 of 4 .* is far from", "measured"),
        # What is there already may move about.
        ({"nc2": (1.0, 0.04, 0.05)}, "4 of 4 .* layer has collapsed", "agrees"),
        ({"nc2": (1.0, 0.4, 0.6)}, "NC2 0.4 → 0.6, .* 3 of 4 fell", "disagrees"),
        ({"interpolates": False}, "not reach; NC1 went from 2 to 0.04", "measured"),
        ({"first_zero": 100}, "zero only at the last record", "measured"),
        ({"nc1": (2.0, 0.5, NAN)}, "NC1 is not finite", "measured"),
    ],
)
def test_collapse(changes, expected, verdict):
    first, *_ = COLLAPSE.findings(collapse(**changes))
    assert re.search(expected, first.text), first.text
    assert first.verdict == verdict


def test_collapse_is_drawn_on_both_sets():
    numbers = collapse()
    axes = Figure().subplots()
    COLLAPSE.draw(numbers, axes)
    drawn = [list(line.get_ydata()) for line in axes.lines[:8]]
    curves = [
        numbers[split][f"nc{i}"] for split in ("train", "test") for i in range(1, 5)
    ]
    assert drawn == [[max(value, 1e-4) for value in curve] for curve in curves]


def test_collapse_on_which_data():
    _, apart = COLLAPSE.findings(collapse())
    assert "0.6, 15 times its training value" in apart.text
    assert apart.text.endswith("has collapsed on the training set alone.")
    _, alike = COLLAPSE.findings(collapse(test=0.04))
    assert alike.text.endswith("has collapsed on both sets.")
    _, neither = COLLAPSE.findings(collapse(nc1=(2.0, 0.9, 0.8), test=0.9))
    assert neither.text.endswith("1.12 times its training value.")
    assert len(COLLAPSE.findings(collapse(test=NAN))) == 1


# --- class means


def class_cosines(means, **changes):
    means = [list(map(float, mean)) for mean in means]
    held = {"classes": [0, 1, 4], "means": means, "interpolates": True}
    return held | {"start": 0.5, "end": 0.05, "test": 0.2} | changes


SQUARE = [(0, 1), (1, 0), (-1, 0)]


@pytest.mark.parametrize(
    ("changes", "expected", "verdict"),
    [
        ({}, "0.05 away .* 0.5\\) and 0.2 on test data.$", "agrees"),
        ({"end": 0.3}, "0.3 away .* test data.$", "measured"),
        ({"end": 0.3, "interpolates": False}, "has not reached zero", "measured"),
    ],
)
def test_class_cosines(changes, expected, verdict):
    numbers = class_cosines(SQUARE, **changes)
    (finding,) = CLASS_COSINES.findings(numbers)
    # Around (0, 1/3): (0, 2/3), (1, -1/3) and (-1, -1/3).
    pairs = "at cosine -0.50 .* -0.80 \\(classes 1 and 4\\) to -0.32 \\(classes 0 and"
    assert re.search(pairs, finding.text), finding.text
    assert re.search(expected, finding.text), finding.text
    assert finding.verdict == verdict
    drawn = svg(CLASS_COSINES, numbers)
    assert drawn.count("-.32") == 4
    assert drawn.count("-.80") == 2
    assert CLASS_COSINES.rows(numbers)[0].reference == "0; test 0.2"


def test_class_cosines_without_angles():
    for means in ([(NAN, 1), (1, 0)], [(0, 0), (1, 0), (-1, 0)]):
        numbers = class_cosines(means) | {"classes": list(range(len(means)))}
        assert lacks(CLASS_COSINES, numbers)
        svg(CLASS_COSINES, numbers)
    assert lacks(CLASS_COSINES, class_cosines(SQUARE, end=NAN))


# --- three classes in their plane


def simplex_plane(corners, *, spread=0.0, rows=None, scale=1.0):
    """Two examples a class, `spread` on either side of its corner."""
    corners = np.asarray(corners, float)
    aside = np.array([[spread, 0]])
    points = np.concatenate([corners + aside, corners - aside])
    split = {"points": (3 + scale * points).tolist(), "labels": [0, 1, 2] * 2}
    rows = corners if rows is None else np.asarray(rows, float)
    return {"missing": False, "train": split, "test": split, "rows": rows.tolist()}


EVEN = np.array([[0, 1], [-(0.75**0.5), -0.5], [0.75**0.5, -0.5]])


@pytest.mark.parametrize(
    ("numbers", "expected", "verdict"),
    [
        (simplex_plane(EVEN, spread=0.05, scale=7), "by 0.05 of .* 0°, 0°", "agrees"),
        (simplex_plane(EVEN, spread=0.2), "by 0.2 of its radius", "measured"),
        (simplex_plane(EVEN, rows=EVEN[[1, 0, 2]]), "120°, 120°, 0°", "measured"),
        (simplex_plane(EVEN * [1, 3]), "corners are -0.87, -0.87, 0.50 ", "measured"),
    ],
)
def test_simplex_plane(numbers, expected, verdict):
    (finding,) = SIMPLEX_PLANE.findings(numbers)
    assert re.search(expected, finding.text), finding.text
    assert finding.verdict == verdict
    assert "classifier row" in svg(SIMPLEX_PLANE, numbers)
    assert SIMPLEX_PLANE.rows(numbers) == []


def test_simplex_plane_without_a_plane():
    for numbers in (simplex_plane(EVEN * [1, 0]), {"missing": True}):
        assert lacks(SIMPLEX_PLANE, numbers)
        assert "no plane to draw" in svg(SIMPLEX_PLANE, numbers)


# --- separation


@pytest.mark.parametrize(
    ("ratio", "num_drops", "p_value", "verdict"),
    [
        (0.41, 4, 0.012, "agrees"),
        (0.43, 4, 0.45, "measured"),
        (0.43, 2, 0.01, "measured"),
        (1.2, 4, 0.01, "disagrees"),
    ],
)
def test_separation(ratio, num_drops, p_value, verdict):
    law = {"values": [2.0] * (num_drops + 1), "drop_variation": 0.3}
    law |= {"ratio": ratio, "pearson_r": -0.995, "r_squared": 0.99}
    numbers = {"final": law | {"p_value": p_value}}
    (finding,) = SEPARATION.findings(numbers)
    assert f"says {ratio:.2f} a layer (r = -0.995, R² = 0.990). " in finding.text
    assert f"the {num_drops} vary by 0.30 of their mean" in finding.text
    assert f"of random drops {100 * p_value:.1f} % are as equal" in finding.text
    assert finding.verdict == verdict


def test_separation_is_drawn_with_its_fit_and_p_value():
    values = {"initial": [8.0, 8.0, 8.0, 8.0], "final": [8.0, 4.0, 2.0, 1.0]}
    layers = ["input", "layer_1", "layer_2", "layer_3"]
    numbers = {end: {"values": v, "layers": layers} for end, v in values.items()}
    numbers["final"] |= {"p_value": 0.03}
    drawn = svg(SEPARATION, numbers)
    assert "factor 1.00, r = 0.000<" in drawn
    assert "factor 0.50, r = -1.000, p = 0.03<" in drawn
    assert ">input<" in drawn


def test_separation_that_is_not_finite():
    law = {"values": [3.0, NAN, 1.0], "layers": ["input", "layer_1", "layer_2"]}
    scalars = ("ratio", "pearson_r", "r_squared", "drop_variation", "p_value")
    law |= dict.fromkeys(scalars, NAN)
    numbers = {"initial": law, "final": law}
    assert lacks(SEPARATION, numbers)
    assert SEPARATION.rows(numbers) == [
        ("separation ratio a layer", "not finite", "no fit")
    ]
    assert "factor" not in svg(SEPARATION, numbers)


# --- path


def path(*, ratio=0.99, own=2.9, flipped=2.0, ou=2.1, spread=0.1):
    null = lambda mean: {"ph_dimension": mean, "ph_standard_deviation": spread}
    return {
        "num_points": 2_000,
        "too_few": False,
        "path_length": 12.5,
        "e_1": 12.5 * ratio,
        "e_1_over_path_length": ratio,
        "ph_dimension": own,
        "sign_flipped": null(flipped),
        "ou": null(ou),
        "plane": [[0.0, 0.0], [2.0, 0.1], [3.0, 0.0]],
        "plane_steps": [0, 1000, 2000],
        "plane_share": [0.95, 0.02],
    }


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (0.99, "2,000 iterates has length E₁ = 12.4, 0.990 of .* how far training"),
        (0.6, "E₁ = 7.5, 0.600 of .* zigzags or comes back"),
    ],
)
def test_path_length(ratio, expected):
    first, _ = PATH.findings(path(ratio=ratio))
    assert re.search(expected, first.text), first.text


# Three standard deviations of single draws are .3.
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "is 2.90; .* 2.00 ± 0.10 .* 2.10 ± 0.10 .*: the path differs from both"),
        ({"own": 1.7}, "is 1.70; .*: not told apart from flipped"),
        ({"own": 2.35}, "is 2.35; .*: not told apart from the Orn"),
        ({"own": 1.65}, "is 1.65; .*: the path differs from both"),
        ({"flipped": 2.8}, "2.80 ± 0.10 .*: not told apart from"),
        ({"spread": 0.4}, "± 0.40 .*: not told apart from"),
    ],
)
def test_path_dimension_beside_its_nulls(changes, expected):
    _, second = PATH.findings(path(**changes))
    assert re.search(expected, second.text), second.text
    assert second.verdict == "measured"


def test_path_beside_a_random_walk():
    drawn = svg(PATH, path())
    assert "95.0 % of variance (random walk 60.8 %)" in drawn
    assert "2.0 % (random walk 15.2 %)" in drawn


@pytest.mark.parametrize("name", ["own", "ou", "spread"])
@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_path_without_a_dimension(name, value):
    numbers = path(**{name: value})
    first, second = PATH.findings(numbers)
    assert "how far training" in first.text
    assert "nothing to judge" in second.text
    assert not re.search(r"\b(nan|inf)\b", str(PATH.rows(numbers)))


def test_path_of_no_length():
    numbers = path(ratio=NAN, own=NAN) | {"path_length": 0.0}
    numbers["plane_share"] = [NAN, NAN]
    assert lacks(PATH, numbers)
    assert PATH.rows(numbers)[0] == ("path length", "0", "E₁ / length not finite")
    assert "no path to draw" in svg(PATH, numbers)


def test_path_of_too_few_points():
    (finding,) = PATH.findings({"num_points": 321, "too_few": True})
    assert "321 points: too few for a dimension (500 are needed)" in finding.text
    assert "too few points" in svg(PATH, {"num_points": 1, "too_few": True})


# --- bounds


def bounds(*, trained=0.31, prior=0.88, error=0.04, vacuous=False):
    bound = {"empirical_risk": 0.02, "complexity": 1234.0}
    return {
        "bounds": {
            "PAC-Bayes": bound | {"value": trained, "vacuous": vacuous},
            "KL = 0": bound | {"value": prior, "vacuous": False},
            "hold-out": bound | {"value": 0.055, "vacuous": False},
        },
        "test_error": error,
        "chance": 0.9,
        "num_train": 1_000,
        "num_test": 797,
    }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "below 31.0 % .* 2.0 %, complexity 1,234 nats.* is not vacuous"),
        ({}, "errs on 90.0 %.*57.0 points below the 88.0 %"),
        ({"trained": 0.95, "vacuous": True}, "below 95.0 %.* is vacuous"),
        ({"trained": 0.95, "vacuous": True}, "and 7.0 points above the 88.0 %"),
    ],
)
def test_bounds(changes, expected):
    numbers = bounds(**changes)
    first, second = BOUNDS.findings(numbers)
    assert re.search(expected, first.text), first.text
    assert "797 test examples is 5.5 % where 4.0 % was measured" in second.text
    reference = BOUNDS.rows(numbers)[0].reference
    vacuous = changes.get("vacuous", False)
    assert reference == ("vacuous" if vacuous else "test error 4.0 %")
