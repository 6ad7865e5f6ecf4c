"""The curvature benchmark without its peers: cases, worker, arithmetic, table."""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib import pyplot

from experiments.benchmarks import (
    curvature,
    curvature_cases,
    curvature_jax,
    curvature_report,
    worker,
)
from experiments.benchmarks.environments import LimitError
from experiments.benchmarks.kernels_report import Measurement


def test_cases_in_full_are_those_of_the_targets():
    case = curvature_cases.make("MLP 784")
    assert case.x.shape == (5000, 784)
    assert sum(w.size + b.size for w, b in case.layers) == 932_362
    assert case.num_steps == 100
    assert case.num_probes == 10
    assert set(curvature_report.TIMES_FASTER) == set(curvature_cases.NAMES)


def test_a_case_is_the_network_it_says_it_is():
    case = curvature_cases.make("small CNN", small=True)
    (w1, b1), (w2, b2), (w3, b3) = case.layers

    def conv(x, w, b):
        n, height, width, _ = x.shape
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        y = np.zeros((n, height, width, w.shape[-1])) + b
        for i, j in np.ndindex(3, 3):
            y += padded[:, i : i + height, j : j + width] @ w[i, j]
        return np.tanh(y)

    h = conv(case.x, w1, b1)
    h = h.reshape(len(h), 2, 2, 2, 2, -1).mean((2, 4))
    expected = conv(h, w2, b2).mean((1, 2)) @ w3 + b3
    apply_fn, _, params, x, _ = curvature_jax.problem(case)
    np.testing.assert_allclose(apply_fn(params, x), expected, rtol=1e-5, atol=1e-6)


def test_a_worker_answers_with_results_that_agree(tmp_path):
    names = ("dense spectrum", "eigenvalues", "trace", "moments", "traces")
    requests, case = [], "small MLP"
    for name in names:
        common = {"case": case, "implementation": name, "small": True}
        requests.append({"do": "first", "file": str(tmp_path / name), **common})
    replies = io.StringIO()
    lines = [json.dumps(request) for request in requests]
    worker.serve(curvature_cases.make, curvature_jax.OURS, lines, replies)
    assert len(replies.getvalue().splitlines()) == len(names)
    found = {name: np.load(tmp_path / f"{name}.npy") for name in names}
    rows = curvature_report.rows([], {case: found}, {})
    assert [row.met for row in rows] == [True] * 3  # traces, eigenvalues, trace
    assert found["trace"].shape == (2,)
    assert found["moments"].shape == (curvature_cases.NUM_MOMENTS,)
    assert found["traces"][0] > 0


def test_moments_are_those_of_products():
    case = curvature_cases.make("small MLP", small=True)
    apply_fn, loss_fn, params, x, y = curvature_jax.problem(case)
    vector = image = curvature_jax.variables(curvature_cases.signs(case, 0))
    mean = lambda params: jnp.mean(loss_fn(apply_fn(params, x), y))
    inner = lambda a, b: sum(
        float(jnp.vdot(s, t))
        for s, t in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )
    expected = []
    for _ in range(3):
        image = jax.jvp(jax.grad(mean), (params,), (image,))[1]
        expected.append(inner(vector, image) / inner(vector, vector))
    found = curvature_jax.moments(case)()
    np.testing.assert_allclose(found[:3], expected, rtol=1e-4)


def test_every_rival_is_timed():
    timed = curvature.TIMED["curvature"]
    for ours, rivals in curvature_report.RIVALS.items():
        assert ours in curvature.TIMED["ours"]
        assert set(rivals) <= set(timed)
    assert set(curvature.TIMED["ours"]) < set(curvature_jax.OURS)


def measurements():
    times = {
        ("ours", "gradient"): 10.0,
        ("ours", "Hessian"): 120.0,
        ("ours", "Hessian, full"): 150.0,
        ("ours", "GGN"): 150.0,
        ("ours", "density"): 100.0,
        ("ours", "density, full"): 110.0,
        ("curvature", "curvlinops Hessian"): 240.0,
        ("curvature", "eigenthings Hessian"): 480.0,
        ("curvature", "curvlinops density"): 170.0,
    }
    return [
        Measurement("MLP 784", *name, "", 1.0, 1.0, 0.0, (t, 2 * t), (t, 2 * t))
        for name, t in times.items()
    ]


def test_rows_say_what_the_numbers_say():
    results = {
        "memory": np.array([130.0, 100.0, 10.0]),
        "memory, batches": np.array([200.0, 100.0, 10.0]),
        "traces": np.array([4.0, 4.0, 4.0]),
    }
    rows = curvature_report.rows(measurements(), {"MLP 784": results}, {"MLP 784": 100})
    assert [row.met for row in rows] == [True, False, True, False, True, False, True]
    # A product takes 1.2 units, a gradient 1.
    assert [row.measured for row in rows[2:4]] == ["1.20", "1.50"]
    assert rows[0].measured.startswith("2.00 ")
    assert "against curvlinops density" in rows[1].claim
    assert rows[5].measured.startswith("1.82 ")


@pytest.mark.parametrize(("shift", "met"), [(0.0, True), (1e-3, False)])
def test_a_difference_from_a_peer_is_seen(shift, met):
    spectrum = np.array([-3.0, 5.0, 4.0, 2.0, 1.5, 1.0])
    five = np.array([5.0, 4.0, -3.0, 2.0, 1.5])
    moments = np.arange(1.0, 10.0)
    results = {
        "dense spectrum": spectrum,
        "eigenvalues": five,
        "trace": np.array([10.5, 0.1]),
        "moments": moments,
        "PyHessian eigenvalues": five * (1 + shift),
        "PyHessian trace": np.array([10.6 + 1e3 * shift, 0.1]),
        "PyHessian moments": moments * (1 + shift),
    }
    rows = curvature_report.rows([], {"small": results}, {})
    assert [row.met for row in rows] == [True, True, met, met, met]


def test_the_table_and_the_figure_hold_everything():
    rows = curvature_report.rows(measurements(), {}, {"MLP 784": 100})
    table = curvature_report.table(measurements(), rows, (1.0, 2.0))
    assert table.count(" | ") == 3 * (1 + len(rows))
    assert "curvlinops Hessian" in table
    figure = curvature_report.draw(measurements())
    heights = [patch.get_height() for patch in figure.axes[0].patches]
    assert heights == pytest.approx([2.0, 4.0, 1.7])
    pyplot.close(figure)


class Memory:
    """A worker that keeps what it was asked to build, and dies of some of it."""

    def __init__(self, environment, deadly=()):
        self.environment, self.deadly, self.built = environment, deadly, []

    def ask(self, request, limits):
        del limits
        if request["do"] == "forget":
            return {}
        name = request["implementation"]
        if name in self.deadly:
            self.built = []
            raise LimitError("over 8 GB")
        if request["do"] == "first":
            self.built.append(name)
            return {"seconds": [2.0], "cpu_seconds": [3.0]}
        assert name in self.built
        return {"seconds": [1.0], "cpu_seconds": [2.0]}


def test_who_takes_too_much_is_left_out_and_the_others_go_on():
    theirs = curvature.TIMED["curvature"]
    peers = {
        "ours": Memory("ours"),
        "curvature": Memory("curvature", deadly=theirs[2:3]),
    }
    found = curvature.measure(curvature.Config(rounds=2), "CNN", peers)
    skipped = {m.implementation: m.skipped for m in found if m.skipped}
    assert skipped == {theirs[2]: "over 8 GB"}
    assert all(m.seconds == (1.0, 1.0) for m in found if not m.skipped)
