"""Softmax codes: closed margins are reached and not exceeded."""

import jax
import numpy as np
import pytest

from jaxtheory.collapse.theory import _softmax_codes as module
from jaxtheory.collapse.theory import softmax_code, softmax_code_margin

CLOSED = {(4, 6): 4 / 3, (5, 3): 1.0, (7, 2): 1 - np.cos(2 * np.pi / 7), (8, 4): 1.0}


@pytest.mark.parametrize(("num_classes", "num_features"), CLOSED)
def test_the_search_reaches_the_closed_margin(num_classes, num_features):
    closed = softmax_code_margin(num_classes, num_features)
    assert closed == pytest.approx(CLOSED[num_classes, num_features], rel=1e-14)
    code = softmax_code(num_classes, num_features, key=jax.random.key(0))
    np.testing.assert_allclose(code.margin, closed, atol=3e-6)
    assert code.margin < closed + 1e-9
    np.testing.assert_allclose(np.linalg.norm(code.vectors, axis=1), 1, rtol=1e-14)
    assert code.margin == max(code.margins)


def test_ten_classes_in_four_dimensions():
    assert softmax_code_margin(10, 4) is None
    code = softmax_code(10, 4, key=jax.random.key(1))
    np.testing.assert_allclose(code.margin, 5 / 6, atol=3e-6)
    # The margin by hand: each vector against random points of the others' hull.
    weights = np.random.default_rng(0).dirichlet(np.full(9, 0.3), size=2000)
    distances = [
        np.linalg.norm(row - weights @ np.delete(code.vectors, i, axis=0), axis=1)
        for i, row in enumerate(code.vectors)
    ]
    assert code.margin < np.min(distances) < code.margin + 0.2


def test_a_cold_start_is_worse(monkeypatch):
    # What annealing is for: the same search, sharp from its first step.
    annealed = softmax_code(8, 4, key=jax.random.key(2), num_steps=1001)
    monkeypatch.setattr(module, "_FIRST_SHARPNESS", 5e4)
    cold = softmax_code(8, 4, key=jax.random.key(2), num_steps=1002)
    assert cold.margin < 0.9 < annealed.margin


def test_simplex_is_the_code_where_it_fits():
    code = softmax_code(4, 6, key=jax.random.key(0))
    gram = code.vectors @ code.vectors.T
    np.testing.assert_allclose(gram, (4 * np.eye(4) - 1) / 3, atol=1e-4)
    assert softmax_code_margin(3, 2) == pytest.approx(1.5)  # simplex and polygon
    assert softmax_code_margin(4, 2) == pytest.approx(1.0)  # orthoplex and polygon
    assert softmax_code_margin(2, 1) == 2.0
    assert softmax_code_margin(3, 1) == 0.0


def test_other_keys_do_not_trace_again():
    softmax_code(5, 3, key=jax.random.key(3))
    before = module._search._cache_size()
    softmax_code(5, 3, key=jax.random.key(4))
    assert module._search._cache_size() == before


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: softmax_code_margin(1, 3), r"`num_classes` must be an integer of at"),
        (
            lambda: softmax_code(4, 0, key=jax.random.key(0)),
            r"`num_features` must be an integer of at least 1",
        ),
        (
            lambda: softmax_code(4, 3, key=0),  # pyright: ignore
            r"`key` must be one typed random key",
        ),
    ],
)
def test_bad_input_names_the_fix(call, message, user_land):
    with pytest.raises(ValueError, match=message):
        call()
