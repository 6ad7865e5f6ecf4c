"""Implicit biases, small: against closed forms and orderings; files and command."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from matplotlib.image import imread

from experiments import implicit_bias as script
from experiments.bias import diagonal, flows, margin, page
from jaxtheory import kernels
from jaxtheory.dynamics import implicit

SMALL = script.Config(
    scales=(3.0, 0.03),
    num_points=4,
    num_features=8,
    num_nonzero=1,
    patience=1000.0,
    edge_width=5,
    edge_rate=0.2,
    edge_steps=200,
    window=10,
    rates=(0.02, 0.01),
    error_time=2.0,
    margin_points=8,
    margin_dim=3,
    margin_steps=2000,
    margin_records=4,
    num_seeds=2,
)


@pytest.fixture(scope="module")
def result():
    return script.run(SMALL)


@pytest.mark.parametrize("scale", [2.0, 1e-3])
def test_the_least_penalty_is_that_of_the_dual(scale, x64):
    x, y, _ = diagonal.problem(SMALL, 0)
    beta = diagonal.least_penalty(x, y, 2, scale)
    limit = kernels.diagonal_network_limit(x, y, scale=scale)
    np.testing.assert_allclose(beta, limit.coefficients, atol=1e-9)
    # Depth 3: an interpolation at which the penalty has no slope along the others.
    beta = diagonal.least_penalty(x, y, 3, scale)
    np.testing.assert_allclose(x @ beta, y, atol=1e-9)
    slope = jax.grad(
        lambda b: implicit.diagonal_network_penalty(b, scale=scale, depth=3)
    )(jnp.asarray(beta))
    free = np.linalg.svd(x)[2][4:]
    assert np.abs(free @ slope).max() < 1e-6 * np.abs(slope).max()


def test_basis_pursuit_has_the_least_norm():
    x, y, truth = diagonal.problem(SMALL, 0)
    beta = diagonal.basis_pursuit(x, y)
    np.testing.assert_allclose(x @ beta, y, atol=1e-9)
    assert np.sum(np.abs(beta)) <= np.sum(np.abs(truth)) + 1e-9
    assert np.sum(np.abs(beta)) <= np.sum(np.abs(np.linalg.pinv(x) @ y)) + 1e-9


def test_diagonal_networks_end_in_the_least_penalty(result):
    found = result.diagonal
    assert found.apart.shape == (2, 2, 2)
    assert found.apart.max() < 1e-3
    assert found.training.max() < 1e-3
    assert min(found.l1.min(), found.l2.min()) > -1e-4
    # From large to small scales nearer to l1, and further from l2.
    assert np.all(np.diff(found.l1, axis=1) < 0)
    assert np.all(np.diff(found.l2, axis=1) > 0)
    shallow = found.l2[0, 0] <= found.l2_limit[0, 0] + 1e-6
    assert np.all(shallow & (found.l1[0, 1] <= found.l1_limit[0, 1]))


def test_errors_have_the_orders_of_the_flows(result):
    for name, power in (("gradient flow", 1), ("modified flow", 2)):
        far, near = result.errors.distance[name].T
        np.testing.assert_allclose(
            result.errors.slope[name], np.log2(far / near), rtol=1e-6
        )
        np.testing.assert_allclose(result.errors.slope[name], power, atol=0.15)


def test_sharpness_is_that_of_the_dense_hessian(x64):
    x, y = (leaf.astype(jnp.float64) for leaf in flows.task())
    model = flows._model(5)
    params = model.init(jax.random.key(0), x)
    params = jax.tree.map(lambda leaf: leaf.astype(float), params)
    flat, unravel = ravel_pytree(params)
    outputs = lambda w: jnp.asarray(model.apply(unravel(w), x))
    loss = lambda w: jnp.mean((outputs(w) - y) ** 2)
    top = np.linalg.eigvalsh(jax.jit(jax.hessian(loss))(flat))[-1]
    path = jax.tree.map(lambda leaf: leaf[None], params)
    np.testing.assert_allclose(flows._sharpness(5, path, (x, y)), [top], rtol=1e-5)


def test_curves_are_windows_of_the_same_steps(result):
    edge = result.edge
    assert edge.loss.shape == edge.sharpness.shape == edge.late.shape == (2, 19)
    np.testing.assert_array_equal(edge.steps, np.arange(0, 190, 10))
    assert edge.converged.all()
    # All start in one place, and the edge is above what the central flow passes.
    np.testing.assert_allclose(edge.central_loss[:, 0], edge.flow_loss[:, 0], rtol=0.2)
    assert edge.central_sharpness.max() < 1.01


def test_late_records_are_averaged(result):
    values = np.arange(6.0).reshape(2, 3)
    at = np.array([[False, True, True], [False, False, False]])
    got = page.late(result.edge._replace(late=at), values)
    np.testing.assert_array_equal(got, [1.5, np.nan])


def test_margins_are_nearly_the_largest_and_never_more(result):
    found = result.margins
    assert found.certified
    assert found.share.shape == (2, 2, 2, 4)
    assert found.share.max() < 1 + 1e-9
    for i in range(2):
        assert np.all(found.share[i, i, :, -1] > 1 - found.gap[i])
        assert np.all(np.diff(found.share[i, i], axis=-1) > -0.01)
    x, y = margin.problem(SMALL, 0)
    assert len(x) == SMALL.margin_points
    assert set(y) <= {-1, 1}


def test_claims_count_what_was_measured(result):
    named = {claim.claim: claim for claim in page.claims(SMALL, result)}
    claim = named["error of modified flow: power of eta (2009.11162)"]
    mean = result.errors.slope["modified flow"].mean()
    np.testing.assert_allclose(claim.measured, mean)
    claim = named["gradient descent: l2 margin over the largest (1802.08246)"]
    np.testing.assert_allclose(claim.measured, result.margins.share[0, 0, :, -1].mean())
    assert claim.verdict == "holds"


def test_command_line_writes_numbers_and_figure(result, monkeypatch, tmp_path, capsys):
    asked = []
    monkeypatch.setattr(script, "run", lambda config: asked.append(config) or result)
    # As many scales as the result has.
    out = tmp_path / "there"
    flags = "--scales 3 0.03 --edge-rate 0.2"
    monkeypatch.setattr(sys, "argv", ["x", *flags.split(), "--out", str(out)])
    script.main()
    assert asked[0].scales == (3.0, 0.03)
    assert "at the edge of stability" in capsys.readouterr().out
    held = json.loads((out / "result.json").read_text())
    np.testing.assert_allclose(held["diagonal"]["l1"], result.diagonal.l1)
    assert np.std(imread(out / "figure.png")[..., 0]) > 0.05


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num-seeds", "1"], "error: `num_seeds` must be at least two"),
        (["--depths", "3"], "error: `depths` must have 2 among them"),
    ],
)
def test_bad_options_are_refused(flags, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", *flags])
    with pytest.raises(SystemExit, match=message):
        script.main()
