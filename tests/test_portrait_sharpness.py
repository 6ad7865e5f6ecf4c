"""What the portrait says of the edge of stability, of numbers on either side of it."""

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sections_said import NAN, lacks, svg

from jaxtheory.portrait import Config, _plan
from jaxtheory.portrait.sections import SHARPNESS


def sharpness(*, late=1.0, end=1.0, peak=1.05, threshold=20.0, low=None, **changes):
    return {
        "steps": [0, 10, 20],
        "sharpness": [5.0, 15.0, 20.0],
        "followed": [5.0, 15.0, end * threshold],
        "kind": "sharpness",
        "threshold": threshold,
        "threshold_low": threshold if low is None else low,
        "thresholds": [threshold] * 3,
        "late_ratio": late,
        "end_ratio": end,
        "peak_ratio": peak,
        "peak_error": 0.0,
        "peak_step": 10,
        "converged": 1.0,
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


def test_sharpness_of_sam_has_a_threshold_that_moves():
    config = _plan.complete(Config(optimizer="sam", learning_rate=0.5))
    values = {
        "sharpness": np.array([1.0, 2.0, 3.0, 2.5, 1.4, 1.0]),
        "threshold": np.array([4.0, 3.5, 3.0, 2.5, 1.4, 1.0]),
        "converged": np.ones(6),
    }
    history: Any = SimpleNamespace(
        steps=np.arange(6) * 10, records={"curvature": values}, diverged_at=None
    )
    _, edge = _plan._optimizer(config)
    plan: Any = SimpleNamespace(config=config, edge=edge)
    numbers = dict(SHARPNESS.read(plan, history))
    assert (numbers["late_ratio"], numbers["threshold"]) == (1.0, 1.0)
    (finding,) = SHARPNESS.findings(numbers)
    assert finding.verdict == "agrees"
    assert "to rise to the threshold of SAM (1 at the end) and to stay" in finding.text
    assert SHARPNESS.rows(numbers)[0].reference == "threshold of SAM (1 at the end)"
    assert "threshold of SAM" in svg(SHARPNESS, numbers)
    trend, note = SHARPNESS.findings(numbers | {"minibatch": True})
    assert trend.verdict == "measured"
    assert "for SAM on minibatches no theory" in note.text


def test_sharpness_that_was_hard_to_find():
    (_,) = SHARPNESS.findings(sharpness(converged=0.96))
    first, note = SHARPNESS.findings(sharpness(converged=0.75))
    assert first.verdict == "agrees"
    assert "At 25 % of the records the residual" in note.text
    *_, note = SHARPNESS.findings(sharpness(converged=0.75, minibatch=True))
    assert "lower bound" in note.text


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
        ("nesterov", None, "sharpness", 3.8 / 2.8, 3.8 / 2.8),
        ("nesterov", 50, "sharpness", 3.8 / 2.8, 3.8 / 2.8),
        # (2 - rate decay) 19 with a rate of .5 and a decay of .1
        ("adamw", None, "preconditioned", 37.05, 37.05),
    ],
)
def test_sharpness_compares_the_right_pair(optimizer, batch_size, kind, low, high):
    config = _plan.complete(
        Config(optimizer=optimizer, batch_size=batch_size, learning_rate=0.5)
    )
    curve = np.array([NAN, 1.0, 6.0, 4.0, 4.0, 4.0])
    names = ("sharpness", "threshold", "converged", "batch_error")
    values = {name: 0 * curve for name in names}
    history: Any = SimpleNamespace(
        steps=np.arange(6) * 10,
        records={"curvature": values | {kind: curve}},
        diverged_at=None,
    )
    _, edge = _plan._optimizer(config)
    plan: Any = SimpleNamespace(config=config, edge=edge)
    numbers = SHARPNESS.read(plan, history)
    assert numbers["kind"] == kind
    assert numbers["threshold_low"] == pytest.approx(low / 0.5)
    assert numbers["threshold"] == pytest.approx(high / 0.5)
    assert numbers["late_ratio"] == pytest.approx(4 / (high / 0.5))
    # Batch sharpness is noisy: its peak is that of a median over five records.
    peak = (4, 30) if kind == "batch" else (6, 20)
    assert numbers["peak_ratio"] == pytest.approx(peak[0] / (high / 0.5))
    assert numbers["peak_step"] == peak[1]
