"""Deep linear networks: what gradient flow keeps, and low rank with depth."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtheory.dynamics import implicit


def network_loss(weights, x, y):
    hidden = x
    for layer in weights:
        hidden = hidden @ layer
    return jnp.mean((hidden - y) ** 2)


def test_gradient_flow_keeps_the_differences(x64):
    rng = np.random.default_rng(0)
    widths = (3, 4, 5, 2)
    weights = [
        jnp.asarray(rng.normal(size=shape)) for shape in itertools.pairwise(widths)
    ]
    x, y = (jnp.asarray(rng.normal(size=(10, d))) for d in (3, 2))
    flow = implicit.gradient_flow(
        network_loss, weights, x, y, learning_rate=0.5, num_steps=4, record_every=4
    )
    assert float(flow.losses[-1]) < 0.5 * float(flow.losses[0])
    ends = jax.tree.map(lambda leaf: leaf[-1], flow.path)
    before, after = implicit.balancedness(weights), implicit.balancedness(ends)
    assert len(before.differences) == 2
    for index, (a, b) in enumerate(
        zip(before.differences, after.differences, strict=True)
    ):
        w, v = (np.asarray(weights[i]) for i in (index, index + 1))
        np.testing.assert_allclose(a, w.T @ w - v @ v.T, atol=1e-13)
        np.testing.assert_allclose(b, a, atol=1e-8)
        scale = max(np.linalg.norm(w.T @ w), np.linalg.norm(v @ v.T))
        np.testing.assert_allclose(before.norms[index], np.linalg.norm(a))
        np.testing.assert_allclose(
            before.relative[index], np.linalg.norm(a) / scale, rtol=1e-12
        )


def test_ranks_of_a_product():
    rng = np.random.default_rng(1)
    weights = [jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((6, 4), (4, 5))]
    got = implicit.product_rank(weights)
    values = np.linalg.svd(np.asarray(weights[0]) @ np.asarray(weights[1]))[1]
    share = values[:4] / values[:4].sum()
    # The smallest singular values are rounding.
    np.testing.assert_allclose(got.singular_values, values, atol=1e-5)
    np.testing.assert_allclose(
        got.effective_rank, np.exp(-np.sum(share * np.log(share))), rtol=1e-4
    )
    np.testing.assert_allclose(
        got.stable_rank, np.sum(values**2) / values[0] ** 2, rtol=1e-5
    )
    np.testing.assert_allclose(got.nuclear_norm, values.sum(), rtol=1e-5)
    nothing = implicit.product_rank([jnp.zeros((3, 3))])
    assert [float(v) for v in nothing[1:]] == [0, 0, 0]
    assert float(implicit.balancedness([jnp.zeros((2, 2))] * 2).relative[0]) == 0
    # Tiny matrices, whose squares underflow.
    tiny = implicit.product_rank([1e-25 * jnp.eye(3)])
    np.testing.assert_allclose(tiny[1:3], [3, 3], rtol=1e-5)


def completion_loss(weights, target, seen):
    product = weights[0]
    for layer in weights[1:]:
        product = product @ layer
    return jnp.sum(jnp.where(seen, product - target, 0) ** 2) / 2


def test_depth_completes_a_matrix_of_low_rank(x64):
    rng = np.random.default_rng(2)
    d, rank = 10, 2
    target = rng.normal(size=(d, rank)) @ rng.normal(size=(rank, d)) / rank**0.5
    seen = rng.random((d, d)) < 0.6
    errors, ranks = {}, {}
    for depth in (1, 2, 3):
        # The product has the same size at every depth.
        start = [jnp.eye(d) * 1e-3 ** (1 / depth)] * depth
        flow = implicit.gradient_flow(
            completion_loss,
            start,
            jnp.asarray(target),
            jnp.asarray(seen),
            learning_rate=300.0,
            num_steps=1,
            tolerance=1e-7,
        )
        assert flow.converged.all()
        assert float(flow.losses[-1]) < 1e-2
        ends = [np.asarray(leaf[-1]) for leaf in flow.path]
        product = np.linalg.multi_dot([*ends, np.eye(d)])
        errors[depth] = np.linalg.norm((product - target)[~seen])
        ranks[depth] = float(implicit.product_rank(ends).effective_rank)
    assert ranks[1] > ranks[2] > ranks[3] > 1
    assert errors[3] < 0.8 * errors[2] < 0.6 * errors[1]


@pytest.mark.parametrize("unit", [1e-15, 1e15])
def test_layers_whose_products_leave_single_precision(unit):
    small = [np.float32(unit) * np.array(w) for w in ([[3.0, 0.0]], [[2.0], [0.0]])]
    balance = implicit.balancedness(small)
    np.testing.assert_allclose(balance.relative, [5 / 9], rtol=1e-6)
    np.testing.assert_allclose(balance.norms, [5 * unit**2], rtol=1e-6)

    rank = implicit.product_rank([np.float32(unit) * np.diag([2.0, 1.0])] * 3)
    np.testing.assert_allclose(rank.stable_rank, 1 + 1 / 64, rtol=1e-6)
    share = np.array([8, 1]) / 9
    expected = np.exp(-np.sum(share * np.log(share)))
    np.testing.assert_allclose(rank.effective_rank, expected, rtol=1e-6)


def test_layers_that_are_not_finite_are_not_balanced():
    layers = [np.full((2, 2), np.nan, "f4"), np.eye(2, dtype="f4")]
    assert np.isnan(implicit.balancedness(layers).relative).all()


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        (
            {"a": np.ones((2, 2)), "b": np.ones((2, 2))},
            "`weights` must be a list .* dict",
        ),
        ([np.ones((2, 2))], "at least 2 matrices, .* holds 1"),
        ([np.ones((2, 3)), np.ones((2, 3))], r"`weights\[1\]` must be a matrix"),
        ([np.ones(2), np.ones((2, 3))], r"`weights\[0\]` must be a matrix"),
        ([np.ones((2, 2), int)] * 2, r"`weights\[0\]` must be floating-point"),
    ],
)
def test_bad_layers(user_land, weights, match):
    bad: Any = weights
    with pytest.raises(ValueError, match=match):
        implicit.balancedness(bad)
    with pytest.raises(ValueError, match="at least 1 matrices"):
        implicit.product_rank([])
