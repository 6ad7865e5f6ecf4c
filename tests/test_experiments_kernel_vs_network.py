"""Kernel against network, small: each part by an oracle, then the whole of it."""

import csv
import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from matplotlib.image import imread

from experiments import kernel_vs_network as script
from experiments.comparison import learners, summary, tasks
from experiments.comparison.learners import FIXED_KERNELS, METHODS, Candidates
from experiments.comparison.training import Options, make_network, train

SMALL = script.Config(
    tasks=("he2",),
    sizes=(200,),
    num_seeds=2,
    widths=(48, 48),
    num_steps=800,
    num_updates=2,
    gaussian_dim=10,
    num_validation=60,
    num_test=200,
)
TWO = Candidates(
    network=(Options(0.02, 0.1), Options(0.02, 0.3)),
    linearised=(Options(0.01, 0.3), Options(0.01, 3.0)),
    ridges=(1e-4, 1.0),
    machines=((1.0, 1e-3), (10.0, 0.1)),
)


@pytest.fixture(scope="module")
def result():
    return script.run(SMALL, candidates=TWO)


def test_network_and_feature_machine_beat_fixed_kernels(result):
    task = result.tasks["he2"]
    assert task.error.shape == (len(METHODS), 1, 2)
    assert np.isfinite(task.error).all()
    assert np.isnan(task.accuracy).all()
    assert task.num_diverged == 0
    assert task.information_exponent == 2
    at = dict(zip(METHODS, task.error[:, -1], strict=True))
    fixed = np.min([at[name] for name in FIXED_KERNELS], axis=0)
    assert np.all(at["network"] < fixed / 2)
    assert np.all(at["RFM"] < fixed / 2)
    assert np.all(task.measures["network overlap"][-1] > 0.9)
    assert np.all(task.measures["RFM overlap"][-1] > 0.9)
    before, after = (task.measures[f"alignment at {w}"][-1] for w in ("start", "end"))
    assert np.all(after > before)


def test_linearised_network_is_regression_with_its_initial_kernel(result):
    # Near it, not equal: Adam is not gradient descent, and nobody has the same ridge.
    rows = [METHODS.index(name) for name in ("linearised", "initial NTK")]
    trained, solved = result.tasks["he2"].error[rows][:, -1]
    np.testing.assert_allclose(trained, solved, rtol=0.3)


@pytest.mark.parametrize("linear", [False, True])
def test_candidates_trained_at_once_are_those_trained_alone(linear):
    network = make_network((6, 5), 2)
    keys = jax.random.split(jax.random.key(1), 3)
    x, y = jax.random.normal(keys[0], (12, 4)), jax.random.normal(keys[1], (12, 2))
    start = network.model.init(keys[2], x)
    candidates = (Options(0.01, 0.5), Options(0.03, 0.0))
    found, failed = train(
        network,
        start,
        x,
        y,
        linear=linear,
        candidates=candidates,
        num_steps=20,
        batch_size=12,
        key=jax.random.key(2),
    )
    assert not failed
    flat, unravel = jax.flatten_util.ravel_pytree(start)
    run = lambda w: network.apply_fn(unravel(w), x)
    jacobian = jax.jacobian(run)(flat) if linear else None
    model = (lambda w: jacobian @ w) if linear else run
    slope = jax.jit(jax.grad(lambda w: jnp.sum((model(w) - y) ** 2) / 12))
    for i, (rate, decay) in enumerate(candidates):
        w = np.zeros(flat.shape) if linear else np.asarray(flat, float)
        first, second = np.zeros_like(w), np.zeros_like(w)
        for t in range(20):
            g = np.asarray(slope(w.astype(np.float32)), float)
            first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
            ratio = first / (1 - 0.9 ** (t + 1))
            ratio /= np.sqrt(second / (1 - 0.999 ** (t + 1))) + 1e-8
            falling = rate * (1 + np.cos(np.pi * t / 20)) / 2
            w = w - falling * (ratio + decay * w)
        own, _ = jax.flatten_util.ravel_pytree(jax.tree.map(lambda a, i=i: a[i], found))
        # Adam divides by the size of gradients, and with it their rounding.
        np.testing.assert_allclose(own, w, atol=2e-4)


def test_regressions_are_the_solutions_of_their_linear_systems():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((14, 20))
    kernel = features @ features[:8].T
    targets = rng.standard_normal((6, 2))
    found = learners._regressions(kernel, targets, 8, TWO.ridges)
    for one, ridge in zip(found, TWO.ridges, strict=True):
        matrix = kernel[:6, :6] + ridge * np.diag(kernel[:6, :6]).mean() * np.eye(6)
        expected = kernel[8:, :6] @ np.linalg.solve(matrix, targets)
        np.testing.assert_allclose(one, expected, rtol=1e-10)


def test_validation_chooses_and_not_the_test():
    task = tasks.Task(*[None] * 3, *[np.array([[1.0], [-1.0]])] * 3, None, 1, True)
    outputs = np.array([[1, -1, 1, 1], [1, -0.5, 1, -1], [np.nan, 0, 1, -1]], float)
    found = learners._choose(task, outputs[..., None])
    assert found == (2.0, 0.5, 0.0, 0)


def test_every_method_has_equally_many_candidates():
    assert {len(Candidates().of(method)) for method in METHODS} == {4}


def test_errors_and_accuracies():
    y = np.eye(3)[[0, 1, 2, 1]]
    np.testing.assert_allclose(tasks.relative_error(y.mean(0)[None] + 0 * y, y), 1)
    assert tasks.accuracy(y[[0, 0, 2, 1]], y) == 0.75
    signs = np.array([[1.0], [-1.0]])
    np.testing.assert_array_equal(
        tasks.accuracy(np.stack([signs, -signs]) / 9, signs), [1, 0]
    )


@pytest.mark.parametrize(
    ("name", "exponent", "shape"),
    [("multi2", 2, (7, 2)), ("parity3", 3, (6, 3)), ("digits", None, None)],
)
def test_tasks_are_split_and_know_their_subspace(name, exponent, shape):
    sizes = tasks.Sizes(20, 10, 30, 7, 6)
    task = tasks.draw_task(name, sizes, key=jax.random.key(0))
    assert len(task.x_train) == len(task.y_train) == 20
    assert len(task.x_validation) == len(task.y_validation) == 10
    assert len(task.x_test) == len(task.y_test) == (1767 if name == "digits" else 30)
    rows = {tuple(row) for row in np.asarray(task.x_train).round(4).tolist()}
    held = [tuple(row) for row in np.asarray(task.x_validation).round(4).tolist()]
    assert name == "parity3" or rows.isdisjoint(held)
    assert task.information_exponent == exponent
    assert (None if shape is None else task.directions.shape) == shape


def made_up(error, validation=None):
    """A task of two sizes with the given errors of the network and of all others."""
    errors = np.stack([error[0]] + [error[1]] * (len(METHODS) - 1)).astype(float)
    validation = errors if validation is None else validation
    measures = dict.fromkeys(learners.MEASURES, np.full(errors.shape[1:], np.nan))
    chosen = np.zeros(errors.shape, int)
    nothing = np.full(errors.shape, np.nan)
    return summary.TaskResult(errors, nothing, validation, chosen, measures, 0, 2)


def test_intervals_are_those_of_student():
    values = np.array([[0.3, 0.5, 0.4, 0.8], [1.0, 2.0, 4.0, 8.0]])
    mean, half = summary.interval(values)
    expected = scipy.stats.ttest_1samp(values, 0, axis=1).confidence_interval()
    np.testing.assert_allclose([mean - half, mean + half], expected)


def test_best_kernel_is_the_one_that_validation_prefers():
    task = made_up(([[1, 1]], [[2, 2]]))
    limit, process = METHODS.index("infinite NTK"), METHODS.index("NNGP")
    error, validation = task.error.copy(), np.ones_like(task.error)
    error[limit], error[process] = 5.0, 3.0
    validation[limit, 0, 0] = validation[process, 0, 1] = 0.5
    validation[METHODS.index("RFM")] = 0.1
    task = task._replace(error=error, validation=validation)
    np.testing.assert_array_equal(summary.best_kernel(task), [[5, 3]])
    np.testing.assert_allclose(summary.advantage(task).mean, [-3])


def test_verdict_follows_the_paired_intervals():
    wide = [0.1, 0.5, 0.9]
    ahead = made_up(([wide, wide], [np.add(wide, 0.2), [0.21, 0.62, 1.03]]))
    undecided = made_up(([wide, wide], [wide[::-1], wide[::-1]]))
    behind = made_up(([[1, 1, 1.1]] * 2, [[0.5, 0.4, 0.5]] * 2))
    assert summary.winners(summary.advantage(ahead)) == ["network", "network"]
    both = {"a": ahead, "b": undecided, "c": behind}
    said = summary.verdict(both, (10, 100))
    assert "network minus best fixed kernel -0.120 +- 0.025 at n = 100" in said[0]
    assert [line.split("n = 100: ")[1].split(";")[0] for line in said[:3]] == [
        "the network is ahead",
        "undecided",
        "the kernel is ahead",
    ]
    assert "on 1 of 3 tasks, behind on 1, and 1 are undecided" in said[3]
    # Less squared error, and yet more wrong answers.
    accuracy = np.full(ahead.error.shape, 0.9)
    accuracy[METHODS.index("network")] = [[0.7, 0.8, 0.9], [0.7, 0.71, 0.72]]
    said = summary.verdict({"a": ahead._replace(accuracy=accuracy)}, (10, 100))[0]
    assert "the network is ahead; exponent" in said
    assert said.endswith("in accuracy -0.190 +- 0.025: the kernel is ahead.")


def test_exponents_are_fitted_and_compared():
    sizes, noise = (10, 100, 1000), np.array([1.0, 1.01, 0.99])
    curve = lambda power: np.array([[float(n) ** power] for n in sizes]) * noise
    task = made_up((curve(-1), curve(-0.2)))
    fitted = summary.exponents(task, sizes)
    np.testing.assert_allclose(fitted["network"].value, -1, atol=1e-6)
    np.testing.assert_allclose(fitted["best fixed kernel"].value, -0.2, atol=1e-6)
    said = summary.verdict({"a": task}, sizes)[0]
    assert "exponent -1.00 against -0.20, its error falls faster" in said
    alone = summary.exponents(made_up((curve(-1)[:1], curve(-1)[:1])), (10,))
    assert np.isnan(alone["RFM"].value)


def test_command_line_writes_numbers_and_figure(result, monkeypatch, tmp_path, capsys):
    asked = []
    stub = lambda config, progress: asked.append(config) or result
    monkeypatch.setattr(script, "run", stub)
    out = tmp_path / "there"
    flags = f"--tasks he2 --sizes 200 --num-seeds 2 --out {out}"
    monkeypatch.setattr(sys, "argv", ["x", *flags.split()])
    script.main()
    assert (asked[0].tasks, asked[0].sizes) == (("he2",), (200,))
    said = capsys.readouterr().out
    assert "the network is ahead of every fixed kernel on" in said
    assert "rate 0.02 decay 0.1: " in said
    assert str(out) in said
    assert json.loads((out / "config.json").read_text())["sizes"] == [200]
    assert "jax" in json.loads((out / "environment.json").read_text())["versions"]
    held = json.loads((out / "result.json").read_text())["tasks"]["he2"]
    np.testing.assert_allclose(held["error"], result.tasks["he2"].error)
    with (out / "table.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == result.tasks["he2"].error.size
    at = {(row["method"], row["n"], row["seed"]): float(row["error"]) for row in rows}
    expected = result.tasks["he2"].error[METHODS.index("RFM"), 0, 0]
    assert at["RFM", "200", "0"] == pytest.approx(expected)
    assert np.std(imread(out / "figure.png")[..., 0]) > 0.05


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": (64,)}, "`widths` must hold at least two hidden layers"),
        ({"sizes": (100, 50)}, "`sizes` must ascend"),
        ({"num_seeds": 1}, "one seed gives no interval"),
        ({"tasks": ()}, "`tasks` must name at least one"),
        ({"tasks": ("digits",), "sizes": (1700,)}, "leave 200 of the 1,797 digits"),
    ],
)
def test_what_cannot_be_compared_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        script.run(dataclasses.replace(SMALL, **changes))


def test_quick_is_small_and_fair():
    short = script.shortened(script.Config(quick=True))
    assert short.widths == script.Config().widths
    assert short.num_seeds > 1
    assert max(short.sizes) <= 500
    assert script.shortened(SMALL) == SMALL
