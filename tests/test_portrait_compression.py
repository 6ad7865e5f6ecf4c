"""What the portrait says can be left out, and that it is so."""

import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sections_said import lacks, svg

from jaxtheory import models
from jaxtheory.portrait.sections import COMPRESSION, _compression

CURVES = {
    "entries": {"shares": [1.0, 0.5, 0.1], "errors": [0.03, 0.02, 0.4]},
    "singular": {"shares": [1.0, 0.7, 0.3], "errors": [0.03, 0.038, 0.2]},
    "nodes": {"shares": [1.0, 0.6], "errors": [0.03, 0.3]},
}
NUMBERS = {"finite": True, "error": 0.03, "num_test": 800, "curves": CURVES}


def test_smallest_networks_at_no_loss():
    (finding,) = COMPRESSION.findings(NUMBERS)
    assert "800 test examples stays within a point of 3.0 % with 50.0 %" in finding.text
    assert "with 70.0 % (in factors)" in finding.text
    assert "with 100.0 % where whole nodes" in finding.text
    assert finding.verdict == "measured"
    rows = COMPRESSION.rows(NUMBERS)
    assert [row.measured for row in rows] == ["50.0 %", "70.0 %", "100.0 %"]
    assert rows[1].quantity == "numbers needed, singular values left out"
    drawn = svg(COMPRESSION, NUMBERS)
    for text in ("entries: 50 % kept", "nodes: 100 % kept", "whole network 3.0 %"):
        assert text in drawn


@pytest.fixture(scope="module")
def read():
    """A network, its inputs and labels, and what the section reads of it."""
    module = models.MLP((8, 6), num_outputs=3, activation=jnp.tanh)
    x = jax.random.normal(jax.random.key(0), (40, 5))
    params = module.init(jax.random.key(1), x[:1])["params"]
    apply_fn = lambda params, x: module.apply({"params": params}, x)
    plan: Any = types.SimpleNamespace(
        apply_fn=apply_fn,
        error=lambda outputs, y: jnp.mean(jnp.argmax(outputs, 1) != y),
        x_test=x,
        y_test=apply_fn(params, x).argmax(1),
    )
    state = types.SimpleNamespace(params=params)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_compression, "_SHARES", (1.0, 0.5))
        patch.setattr(_compression, "_NODE_SHARES", (1.0, 0.5))
        numbers = COMPRESSION.read(plan, types.SimpleNamespace(state=state))  # type: ignore
    return jax.tree.map(np.asarray, params), np.asarray(x), plan.y_test, numbers


def forward(params, x):
    for layer in ("layer_1", "layer_2"):
        x = np.tanh(x @ params[layer]["kernel"] + params[layer]["bias"])
    return x @ params["output"]["kernel"] + params["output"]["bias"]


def test_numbers_are_those_of_smaller_networks(read):
    params, x, y, numbers = read
    assert numbers["error"] == 0
    curves = numbers["curves"]
    for curve in curves.values():
        assert curve["errors"][0] == 0
        assert curve["shares"][0] == pytest.approx(1.0)
    wrong = lambda params: np.mean(forward(params, x).argmax(1) != y)
    # 40 + 48 + 18 entries, 17 biases.
    assert curves["entries"]["shares"][1] == pytest.approx((53 + 17) / 123)
    halves = jax.tree.map(lambda leaf: leaf.copy(), params)
    for layer in halves.values():
        kernel = layer["kernel"]
        kernel[np.abs(kernel) < np.median(np.abs(kernel))] = 0
    assert curves["entries"]["errors"][1] == pytest.approx(wrong(halves))
    # 3 (5 + 8) of 40 and 3 (8 + 6) of 48 in factors; 2 (6 + 3) of 18 save nothing.
    assert curves["singular"]["shares"][1] == pytest.approx((39 + 42 + 18 + 17) / 123)
    first, second, last = (params[name] for name in sorted(params))
    best = lambda kernel: np.sort(
        np.argsort(np.sum(kernel**2, 0))[-kernel.shape[1] // 2 :]
    )
    a, b = best(first["kernel"]), best(second["kernel"])
    small = {
        "layer_1": {"kernel": first["kernel"][:, a], "bias": first["bias"][a]},
        "layer_2": {"kernel": second["kernel"][a][:, b], "bias": second["bias"][b]},
        "output": {"kernel": last["kernel"][b], "bias": last["bias"]},
    }
    assert curves["nodes"]["errors"][1] == pytest.approx(wrong(small))
    size = sum(leaf.size for leaf in jax.tree.leaves(small))
    assert curves["nodes"]["shares"][1] == pytest.approx(size / 123)


def test_weights_that_are_not_finite():
    params = {"layer_1": {"kernel": np.full((2, 2), np.nan)}}
    history: Any = types.SimpleNamespace(state=types.SimpleNamespace(params=params))
    numbers = COMPRESSION.read(None, history)  # type: ignore
    assert lacks(COMPRESSION, numbers)
    assert "not finite" in svg(COMPRESSION, numbers)
    assert COMPRESSION.rows(numbers)[0].measured == "not finite"
