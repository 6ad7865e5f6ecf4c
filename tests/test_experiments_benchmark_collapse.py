"""The collapse benchmark in a size that takes no time."""

import re

import numpy as np
import pytest

from experiments.benchmarks import collapse, collapse_cases

SMALL = collapse.Config(
    peers=False,
    num_classes=4,
    dim=8,
    num_examples=60,
    num_layers=3,
    width=6,
    rounds=1,
)


def test_ways_agree_and_their_ratios_are_printed(capsys):
    collapse.compare(SMALL)
    printed = capsys.readouterr().out
    ratios = re.findall(r"([\d.]+) times ours", printed)
    assert len(ratios) == 3
    assert float(ratios[0]) == 1


def test_a_disagreement_is_no_benchmark():
    case = collapse_cases.make("4,8,60", small=False)
    build = collapse_cases.NUMPY["NumPy pinv of d x d"]
    values = np.array(build(case)())
    collapse.check("NumPy", values, values)
    other = case._replace(bias=case.bias + 5 * np.arange(4, dtype=np.float32))
    with pytest.raises(RuntimeError, match=r"nc4 is .* by ours and .* by NumPy"):
        collapse.check("NumPy", np.array(build(other)()), values)


def test_law_and_memory_are_measured(capsys):
    collapse.law(SMALL)
    collapse.memory(SMALL)
    printed = capsys.readouterr().out
    assert re.search(r"law of 3 layers of 6: [\d.]+ s, [\d.]+ s", printed)
    assert re.search(r"works in [\d.]+ MB", printed)
