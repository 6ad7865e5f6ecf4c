"""What each section of the portrait says, of numbers made up to be on either side."""

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jaxtheory.portrait import Config, _plan
from jaxtheory.portrait._figure import section_svg
from jaxtheory.portrait._style import compact, percent
from jaxtheory.portrait.sections import (
    BOUNDS,
    COLLAPSE,
    KERNEL,
    NOISE,
    PATH,
    SEPARATION,
    SHARPNESS,
    TRAINING,
    _separation,
)

NAN = float("nan")


def svg(section, numbers):
    return section_svg(lambda ax: section.draw(numbers, ax)).decode()


def lacks(section, numbers):
    """Whether the section says that it has nothing to judge, and gives no verdict."""
    first = section.findings(numbers)[0]
    return first.verdict == "measured" and "nothing to judge" in first.text


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


# --- sharpness


def sharpness(*, late=1.0, end=1.0, peak=1.05, threshold=20.0, low=None, **changes):
    return {
        "steps": [0, 10, 20],
        "sharpness": [5.0, 15.0, 20.0],
        "followed": [5.0, 15.0, end * threshold],
        "kind": "sharpness",
        "threshold": threshold,
        "threshold_low": threshold if low is None else low,
        "late_ratio": late,
        "end_ratio": end,
        "peak_ratio": peak,
        "peak_error": 0.0,
        "peak_step": 10,
        "residual": 1e-4,
        "cross_entropy": False,
        "optimizer": "sgd",
        "minibatch": False,
        "learning_rate": 2 / threshold,
        "diverged": False,
    } | changes


BATCH = {"kind": "batch", "minibatch": True}
FALLEN = {"late": 0.4, "end": 0.3, "peak": 1.5, "followed": [29.0, 30.0, 6.0]}
BELOW = {"late": 0.5, "end": 0.6, "peak": 0.7}


@pytest.mark.parametrize(
    ("changes", "expected", "verdict"),
    [
        ({}, "rise to 2/η = 20 .* at 1.00 times .* the edge of stability", "agrees"),
        ({"late": 0.96, "end": 1.03}, "at 0.96 times .* the edge", "agrees"),
        (BELOW, "0.50 times .* peak of 0.70.* not reached", "measured"),
        ({"late": 1.3, "end": 1.2, "peak": 1.4}, "1.30 times.*above", "disagrees"),
        ({"end": 1.25, "peak": 1.3}, "ends at 1.25 times: above", "disagrees"),
        ({"end": 0.4}, "peaked at 1.05 .* step 10 .* 0.40.*not stay", "disagrees"),
        ({"late": 0.7, "end": 0.4}, "did not stay", "disagrees"),
        ({"late": 0.7, "end": 0.97}, "0.70 .* 0.97 times: it has just", "measured"),
        (FALLEN, "peaked at 1.50 .* 0.30 times: it began at the edge", "measured"),
        (FALLEN | {"late": 0.95}, "did not stay", "disagrees"),
        (
            {"end": 0.4, "cross_entropy": True},
            "peaked at 1.05 .* late decay is that of cross-entropy.*not stability",
            "agrees",
        ),
        ({"end": 1.25, "cross_entropy": True}, "above the edge", "disagrees"),
        (BELOW | {"cross_entropy": True}, "was not reached", "measured"),
        (BATCH | {"late": 0.75, "end": 0.8}, "batch sharpness .* edge of", "agrees"),
        (BATCH | BELOW | {"peak": 0.65}, "was not reached", "measured"),
        # A peak of two standard errors above the band, or less, is noise.
        (BATCH | BELOW | {"peak": 0.8, "peak_error": 0.04}, "not stay", "disagrees"),
        (BATCH | BELOW | {"peak": 0.8, "peak_error": 0.06}, "not reached", "measured"),
        ({"diverged": True, "end": 7.0}, "above 2/η = 20; .* 7 times", "measured"),
    ],
)
def test_sharpness(changes, expected, verdict):
    (finding,) = SHARPNESS.findings(sharpness(**changes))
    assert finding.verdict == verdict
    assert re.search(expected, finding.text), finding.text


def test_sharpness_of_adam_has_its_own_threshold():
    numbers = sharpness(
        kind="preconditioned",
        optimizer="adam",
        threshold=12_667.0,
        learning_rate=0.003,
        late=0.98,
        end=0.97,
    )
    (finding,) = SHARPNESS.findings(numbers)
    assert finding.verdict == "agrees"
    assert "preconditioned sharpness to rise to 38/η = 1.27e+04" in finding.text
    assert "0.98 times" in finding.text
    assert "threshold 38/η" in svg(SHARPNESS, numbers)
    trend, note = SHARPNESS.findings(numbers | {"minibatch": True})
    assert trend == finding._replace(verdict="measured")
    assert "no theory gives one" in note.text


def test_sharpness_of_momentum_on_minibatches_has_a_range():
    heavy = BATCH | {"optimizer": "momentum", "learning_rate": 0.05}
    numbers = sharpness(threshold=76.0, low=4.0, late=0.4, end=0.5, **heavy)
    (finding,) = SHARPNESS.findings(numbers)
    assert finding.verdict == "measured"
    assert "0.2/η = 4 for small batches and 3.8/η = 76 for large" in finding.text
    assert "settles at 30.4, 7.6 times the first and 0.4 times the second" in (
        finding.text
    )
    assert "between the two" in finding.text
    assert SHARPNESS.rows(numbers)[1] == (
        "batch sharpness, settled", "30.4", "small batches 4, large ones 76"
    )  # fmt: skip
    assert "3.8/η" in svg(SHARPNESS, numbers)
    ends = [
        (0.05, "the edge of small batches.", "agrees"),
        (0.98, "the edge of large batches", "agrees"),
        (0.02, "below both", "measured"),
        (1.3, "above both", "disagrees"),
    ]
    curve = {"followed": [1.0, 2.0, 3.0]}
    for late, expected, verdict in ends:
        numbers = sharpness(threshold=76.0, low=4.0, late=late, **heavy) | curve
        (finding,) = SHARPNESS.findings(numbers)
        assert expected in finding.text
        assert finding.verdict == verdict
    there = sharpness(threshold=76.0, low=4.0, late=0.05, **heavy)
    (finding,) = SHARPNESS.findings(there | {"followed": [3.4, 3.9, 3.8]})
    assert "the edge of small batches where it began" in finding.text
    assert finding.verdict == "measured"
    (finding,) = SHARPNESS.findings(there | {"diverged": True})
    assert "unstable while batch sharpness is above 3.8/η = 76" in finding.text


def test_sharpness_without_two_records_is_not_judged():
    for followed in ([20.0], [NAN, 20.0], [5.0, NAN]):
        assert lacks(SHARPNESS, sharpness(followed=followed))


@pytest.mark.parametrize(
    ("late", "text"), [(1.0, "1.00"), (2e30, "2e+30"), (NAN, "not finite")]
)
def test_sharpness_in_the_table(late, text):
    value, ratio = SHARPNESS.rows(sharpness(late=late))
    assert value == ("sharpness at the end", "20", "threshold 2/η = 20")
    assert ratio == ("sharpness over threshold", text, "1 at the edge")


# Which sharpness, and what it is held against.
@pytest.mark.parametrize(
    ("optimizer", "batch_size", "kind", "low", "high"),
    [
        ("sgd", None, "sharpness", 2, 2),
        ("sgd", 50, "batch", 2, 2),
        ("momentum", None, "sharpness", 3.8, 3.8),
        ("momentum", 50, "batch", 0.2, 3.8),
        ("adam", None, "preconditioned", 38, 38),
        ("adam", 50, "preconditioned", 38, 38),
    ],
)
def test_sharpness_compares_the_right_pair(optimizer, batch_size, kind, low, high):
    config = _plan.complete(
        Config(optimizer=optimizer, batch_size=batch_size, learning_rate=0.5)
    )
    curve = np.array([NAN, 1.0, 6.0, 4.0, 4.0, 4.0])
    values = {name: 0 * curve for name in ("sharpness", "residual", "batch_error")}
    history: Any = SimpleNamespace(
        steps=np.arange(6) * 10,
        records={"curvature": values | {kind: curve}},
        diverged_at=None,
    )
    _, threshold = _plan._optimizer(config)
    plan: Any = SimpleNamespace(config=config, threshold=threshold)
    numbers = SHARPNESS.read(plan, history)
    assert numbers["kind"] == kind
    assert numbers["threshold_low"] == pytest.approx(low / 0.5)
    assert numbers["threshold"] == pytest.approx(high / 0.5)
    assert numbers["late_ratio"] == pytest.approx(4 / (high / 0.5))
    # Batch sharpness is noisy: its peak is that of a median over five records.
    peak = (4, 30) if kind == "batch" else (6, 20)
    assert numbers["peak_ratio"] == pytest.approx(peak[0] / (high / 0.5))
    assert numbers["peak_step"] == peak[1]


# --- noise


def noise(*scale, batch_size=50, loss=(1.0, 0.1)):
    return {
        "loss": list(loss),
        "steps": list(range(len(scale))),
        "noise_scale": list(scale),
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
    _, full = NOISE.findings(noise(4.0, 40.0, batch_size=200))
    assert "Every step uses all 200 examples" in full.text
    assert lacks(NOISE, noise(4.0))
    assert lacks(NOISE, noise(4.0, 5.0, NAN))


# --- kernel


def kernel(*, distance=(0.0, 0.4), initial=0.05, network=0.02, **changes):
    return {
        "gain": initial - network,
        "gain_error": 0.004,
        "steps": [0, 100],
        "distance": list(distance),
        "alignment": [0.51, 0.83],
        "network_error": network,
        "initial": {"error": initial},
        "final": {"error": 0.03},
        "regression": False,
        "num_test": 797,
    } | changes


@pytest.mark.parametrize(
    ("distance", "expected", "verdict"),
    [
        (0.4, "start is 0.40 .* from 0.51 to 0.83: the .* features", "disagrees"),
        (0.02, "start is 0.02 .* lazy training", "agrees"),
    ],
)
def test_kernel_is_lazy_or_not(distance, expected, verdict):
    first, _ = KERNEL.findings(kernel(distance=(0.0, distance)))
    assert re.search(expected, first.text)
    assert first.verdict == verdict


def test_kernel_that_moves_away_from_the_labels_has_learned_no_features():
    first, _ = KERNEL.findings(kernel(alignment=[0.6, 0.3]))
    assert "from 0.60 to 0.30: the kernel moved, though not towards" in first.text
    assert "learned" not in first.text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "95.0 %, the network 98.0 %, its final kernel 97.0 % .*the network wins"),
        ({"network": 0.09}, "91.0 %.*of -4.0 ± 0.4 points: the initial kernel wins"),
        ({"network": 0.043}, "95.7 %.*797 test .* 0.7 ± 0.4 .* within the sampling"),
        ({"initial": NAN}, "initialisation reaches not finite.* not to be compared"),
        ({"regression": True}, "5.0 % relative error, the network 2.0 %.*network wins"),
    ],
)
def test_kernel_against_network(changes, expected):
    _, second = KERNEL.findings(kernel(**changes))
    assert re.search(expected, second.text), second.text
    assert second.verdict == "measured"


def test_kernel_without_two_records_is_not_judged():
    assert lacks(KERNEL, kernel(distance=(0.0,)))
    assert lacks(KERNEL, kernel(distance=(0.0, NAN)))


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


def test_collapse_on_which_data():
    _, apart = COLLAPSE.findings(collapse())
    assert "0.6, 15 times its training value" in apart.text
    assert apart.text.endswith("has collapsed on the training set alone.")
    _, alike = COLLAPSE.findings(collapse(test=0.04))
    assert alike.text.endswith("has collapsed on both sets.")
    _, neither = COLLAPSE.findings(collapse(nc1=(2.0, 0.9, 0.8), test=0.9))
    assert neither.text.endswith("1.12 times its training value.")
    assert len(COLLAPSE.findings(collapse(test=NAN))) == 1


# --- separation


@pytest.mark.parametrize(
    ("ratio", "correlation", "variation", "num_drops", "verdict"),
    [
        (0.41, -0.995, 0.12, 4, "agrees"),
        (0.43, -0.995, 0.45, 4, "measured"),
        (0.43, -0.995, 0.30, 8, "agrees"),
        (0.43, -0.995, 0.01, 2, "measured"),
        (1.2, 0.99, 0.12, 4, "disagrees"),
    ],
)
def test_separation(ratio, correlation, variation, num_drops, verdict):
    law = {"ratio": ratio, "pearson_r": correlation, "drop_variation": variation}
    law |= _separation._chance(num_drops, variation)
    numbers = {"final": law | {"r_squared": correlation**2}}
    (finding,) = SEPARATION.findings(numbers)
    assert f"says {ratio:.2f} a layer (r = {correlation:.3f}, R² = " in finding.text
    assert f"R² = {correlation**2:.3f}), " in finding.text
    assert f"vary by {variation:.2f} of their mean" in finding.text
    assert finding.verdict == verdict


def test_separation_knows_what_chance_does():
    """Random drops of 4 and 8 layers are below .3 in 17, 4 %."""
    for num_drops, share in ((4, 0.17), (8, 0.04)):
        chance = _separation._chance(num_drops, 0.3)
        assert chance["p_value"] == pytest.approx(share, abs=0.01)
    assert _separation._chance(2, 0.3)["chance_variation"] == pytest.approx(
        1 / 3, abs=0.01
    )


def test_separation_that_is_not_finite():
    law = {"values": [3.0, NAN, 1.0], "layers": ["input", "layer_1", "layer_2"]}
    law |= dict.fromkeys(("ratio", "pearson_r", "r_squared", "drop_variation"), NAN)
    law |= {"log_slope": NAN, "log_intercept": NAN}
    numbers = {"initial": law, "final": law}
    assert lacks(SEPARATION, numbers)
    assert SEPARATION.rows(numbers) == [
        ("separation ratio a layer", "not finite", "no fit")
    ]
    assert "fit" not in svg(SEPARATION, numbers)


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
        (0.6, "E₁ = 7.5, 0.600 of .* comes back to itself"),
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
        ({"own": 1.7}, "is 1.70; .*: not told apart"),
        ({"own": 2.35}, "is 2.35; .*: not told apart"),
        ({"own": 1.65}, "is 1.65; .*: the path differs from both"),
        ({"flipped": 2.8}, "2.80 ± 0.10 .*: not told apart"),
        ({"spread": 0.4}, "± 0.40 .*: not told apart"),
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
