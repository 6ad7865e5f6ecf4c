"""The collapse benchmark in a size that takes no time."""

import re

import numpy as np
import pytest

from experiments.benchmarks import collapse

SMALL = collapse.Config(
    num_classes=4, dim=8, num_examples=60, num_layers=3, width=6, rounds=1
)


def test_ways_agree_and_their_ratios_are_printed(capsys):
    collapse.compare(SMALL)
    printed = capsys.readouterr().out
    ratios = re.findall(r"([\d.]+) times ours", printed)
    assert len(ratios) == 3
    assert float(ratios[0]) == 1


def test_a_disagreement_is_no_benchmark(monkeypatch):
    features, labels, weight, bias = collapse.data(SMALL)
    shifted = lambda cfg: (features, labels, weight, bias + 5 * np.arange(4.0))
    exact = collapse.by_covariances
    wrong = lambda *given, truncated: exact(
        features, labels, weight, np.zeros(4, np.float32), truncated=truncated
    )
    monkeypatch.setattr(collapse, "data", shifted)
    monkeypatch.setattr(collapse, "by_covariances", wrong)
    with pytest.raises(RuntimeError, match=r"nc4 is .* by ours and"):
        collapse.compare(SMALL)


def test_law_and_memory_are_measured(capsys):
    collapse.law(SMALL)
    collapse.memory(SMALL)
    printed = capsys.readouterr().out
    assert re.search(r"law of 3 layers of 6: [\d.]+ s, [\d.]+ s", printed)
    assert re.search(r"works in [\d.]+ MB", printed)
