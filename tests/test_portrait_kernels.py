"""What the sections of kernels say, of numbers made up to be on either side."""

import re

import pytest
from sections_said import NAN, lacks, svg

from jaxtheory.portrait.sections import KERNEL, KERNEL_EVOLUTION, KERNEL_SPECTRUM


def score(error):
    return {"error": error, "standard_error": 0.004}


def gain(value):
    return {"value": value, "standard_error": 0.004}


def infinite(**changes):
    return {
        "ntk": score(0.06),
        "nngp": score(0.07),
        "initial": score(0.05),
        "gain": gain(-0.01),
        "num_train": 1_000,
        "num_test": 797,
        "all": True,
    } | changes


def kernel(*, initial=0.05, network=0.02, final=0.03, **changes):
    return {
        "network": score(network),
        "initial": score(initial),
        "final": score(final),
        "gain": gain(initial - network),
        "final_gain": gain(initial - final),
        "infinite": infinite(),
        "regression": False,
        "num_test": 797,
    } | changes


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "95.0 %, the network 98.0 % on 797 test .* 3.0 ± 0.4 .*the network wins"),
        ({"network": 0.09}, "91.0 %.*of -4.0 ± 0.4 points: the initial kernel wins"),
        ({"network": 0.043}, "95.7 %.* 0.7 ± 0.4 points, within the sampling"),
        ({"initial": NAN}, "initialisation reaches not finite.* not to be compared"),
        ({"regression": True}, "5.0 % relative error, the network 2.0 %.*network wins"),
    ],
)
def test_kernel_against_network(changes, expected):
    first, *_ = KERNEL.findings(kernel(**changes))
    assert re.search(expected, first.text), first.text
    assert first.verdict == "measured"


@pytest.mark.parametrize(
    ("final", "expected"),
    [
        (0.03, "reaches 97.0 %: .* 2.0 ± 0.4 points: the final kernel wins"),
        (0.09, "reaches 91.0 %: .* -4.0 ± 0.4 points: the initial kernel wins"),
        (0.045, "reaches 95.5 %: .* 0.5 ± 0.4 points, within the sampling error"),
    ],
)
def test_kernel_after_training_against_before(final, expected):
    _, second, _ = KERNEL.findings(kernel(final=final))
    assert re.search(expected, second.text), second.text


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (infinite(), "reaches 94.0 % and .* 93.0 %; .* -1.0 .*the initial kernel wins"),
        (infinite(gain=gain(0.01)), " 1.0 ± 0.4 points: the infinite NTK wins"),
        (infinite(gain=gain(0.002)), " 0.2 ± 0.4 points, within the sampling error"),
        (
            infinite(all=False, num_train=100, initial=score(0.12)),
            "93.0 % with 100 .* 797 .* where the initial kernel reaches 88.0 %; NTK",
        ),
        ({"why": "it pools"}, "no infinite-width kernel to compare with: it pools"),
    ],
)
def test_kernel_at_infinite_width(limit, expected):
    *_, third = KERNEL.findings(kernel(infinite=limit))
    assert re.search(expected, third.text), third.text
    assert third.verdict == "measured"


def test_kernel_picture_names_what_is_compared():
    drawn = svg(KERNEL, kernel())
    for name in ("network", "its initial kernel", "its final kernel", "NNGP"):
        assert drawn.count(f">{name}<") == 1
    assert "test error (%), ± 2 standard errors" in drawn
    few = svg(KERNEL, kernel(infinite=infinite(all=False, num_train=100)))
    assert few.count(">(100 examples)<") == 3
    assert "infinite NTK" not in svg(KERNEL, kernel(infinite={"why": "none"}))
    assert [row.measured for row in KERNEL.rows(kernel())] == ["98.0 %", "94.0 %"]
    assert len(KERNEL.rows(kernel(infinite={"why": "none"}))) == 1


def evolution(*, distance=(0.0, 0.4), alignment=(0.51, 0.83)):
    return {"steps": [0, 1], "distance": distance, "alignment": alignment}


@pytest.mark.parametrize(
    ("distance", "expected", "verdict"),
    [
        (0.4, "start is 0.4 .* from 0.51 to 0.83: the .* features", "disagrees"),
        (0.02, "start is 0.02 .* alignment moved: not lazy", "disagrees"),
    ],
)
def test_kernel_is_lazy_or_not(distance, expected, verdict):
    (finding,) = KERNEL_EVOLUTION.findings(evolution(distance=(0.0, distance)))
    assert re.search(expected, finding.text)
    assert finding.verdict == verdict


def test_kernel_that_stays_is_lazy():
    numbers = evolution(distance=(0.0, 0.02), alignment=(0.51, 0.53))
    (finding,) = KERNEL_EVOLUTION.findings(numbers)
    assert "from 0.51 to 0.53: lazy training" in finding.text
    assert finding.verdict == "agrees"


def test_kernel_that_moves_away_from_the_labels_has_learned_no_features():
    (finding,) = KERNEL_EVOLUTION.findings(evolution(alignment=(0.6, 0.3)))
    assert "from 0.60 to 0.30: the kernel moved, though not towards" in finding.text
    assert "learned" not in finding.text


def test_kernel_without_two_records_is_not_judged():
    assert lacks(KERNEL_EVOLUTION, evolution(distance=(0.0,)))
    assert lacks(KERNEL_EVOLUTION, evolution(distance=(0.0, NAN)))


def spectrum(change=-0.3, *, top=10):
    end = lambda dimension: {"trace": 2 * dimension, "effective_dimension": dimension}
    return {
        "start": end(40.0),
        "end": end(30.0),
        "num_top": top,
        "top_share": [0.5, 0.75],
        "num_train": 1_000,
        "change": change,
        "change_error": 0.1,
        "group_size": 125,
    }


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (-0.3, "0.75 times .* 10 directions hold 75.0 % .* 50.0 %.*it concentrated"),
        (0.3, r"from 40 to 30: it spread out \(logarithm \+0.300 ± 0.100 in 8 groups"),
        (-0.2, "no more than from one sample to the next .* groups of 125 examples"),
    ],
)
def test_kernel_spectrum_concentrates_or_not(change, expected):
    (finding,) = KERNEL_SPECTRUM.findings(spectrum(change))
    assert re.search(expected, finding.text), finding.text
    assert finding.verdict == "measured"


def test_kernel_spectrum_that_cannot_be_judged():
    assert lacks(KERNEL_SPECTRUM, spectrum(NAN))
    (finding,) = KERNEL_SPECTRUM.findings(spectrum(top=1))
    assert "its first direction holds 75.0 %" in finding.text
