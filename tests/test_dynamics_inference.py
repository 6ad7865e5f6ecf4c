"""Intervals against loops in NumPy, and their coverage in a thousand repetitions."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from jaxtheory import dynamics
from jaxtheory.dynamics import inference
from jaxtheory.dynamics.inference._tree import Tree

EPS32 = float(np.finfo(np.float32).eps)
TRUTH = np.array([0.4, -0.2], np.float32)
POINTS = np.array([[1.0, 0.0], [1.0, 1.0]], np.float32)


def new_key(seed=0):
    return jax.random.key(seed)


def linear(w, x):
    return x @ w


def half_square(outputs, y):
    return (outputs - y) ** 2 / 2


SQUARED = dynamics.supervised(linear, half_square)
LOGISTIC = dynamics.supervised(linear, optax.sigmoid_binary_cross_entropy)


def test_threads_share_what_they_have_in_common():
    tree = Tree(widths=(1, 2, 6), lengths=(5, 3, 4))
    assert tree.num_steps == 5 + 6 + 24
    # Each thread as weights of all steps, which are independent in the limit.
    rows = np.zeros((6, tree.num_steps))
    starts = np.cumsum([0, 5, 6])
    for thread in range(6):
        for level, share in enumerate((6, 3, 1)):
            length = tree.lengths[level]
            begin = starts[level] + length * (thread // share)
            rows[thread, begin : begin + length] = tree.weights[level] / length
    np.testing.assert_allclose(tree.covariance(), rows @ rows.T, rtol=1e-13)
    # Together they are the average over all steps.
    np.testing.assert_allclose(rows.mean(0), 1 / tree.num_steps, rtol=1e-13)


def regression(n, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2))
    return x, x @ TRUTH + rng.normal(size=n)


def numpy_tree(x, y, order, burn_in, lengths):
    """A tree of splits (2, 2) and batches of two, one thread after another."""
    taken = iter(np.asarray(order))

    starts, step, levels = [np.zeros(2)], 0, []
    for width, length in zip((1, 1, 2, 4), (burn_in, *lengths), strict=True):
        starts = [w for w in starts for _ in range(width // len(starts))]
        totals = [np.zeros(2) for _ in starts]
        for _ in range(length):
            for thread in range(width):
                rows = [next(taken), next(taken)]
                slope = x[rows].T @ (x[rows] @ starts[thread] - y[rows]) / 2
                starts[thread] = starts[thread] - 0.3 * (1 + step) ** -0.6 * slope
                totals[thread] = totals[thread] + starts[thread]
            step += 1
        levels.append([total / length for total in totals])
    num = np.multiply((1, 2, 4), lengths)
    weights = num / num.sum()
    return [
        sum(
            weight * level[thread // (4 // len(level))]
            for weight, level in zip(weights, levels[1:], strict=True)
        )
        for thread in range(4)
    ]


def test_higrad_against_a_loop(x64):
    x, y = regression(70)
    lengths = 4, 3, 5
    got = inference.higrad(
        SQUARED,
        linear,
        jnp.zeros(2),
        (jnp.asarray(x), jnp.asarray(y)),
        jnp.asarray(POINTS, jnp.float64),
        step_size=0.3,
        power=0.6,
        lengths=lengths,
        burn_in=2,
        batch_size=2,
        confidence=0.9,
        key=new_key(4),
    )
    order = jax.random.permutation(jax.random.fold_in(new_key(4), 0), 70)
    parts = np.stack(numpy_tree(x, y, order, 2, lengths)) @ POINTS.T
    np.testing.assert_allclose(got.parts, parts, rtol=1e-11)
    mean = parts.mean(0)
    np.testing.assert_allclose(got.value, mean, rtol=1e-11)
    covariance = Tree((1, 2, 4), lengths).covariance()
    ones = np.ones(4)
    inverse = np.linalg.inv(covariance)
    spread = np.einsum("tq,ts,sq->q", parts - mean, inverse, parts - mean) / 3
    error = np.sqrt(ones @ covariance @ ones * spread / 16)
    np.testing.assert_allclose(got.standard_error, error, rtol=1e-10)
    width = stats.t.ppf(0.95, 3) * error
    np.testing.assert_allclose(got.lower, mean - width, rtol=1e-9)
    np.testing.assert_allclose(got.upper, mean + width, rtol=1e-9)
    assert got.degrees_of_freedom == 3
    assert int(got.num_nonfinite) == 0


def test_batch_means_against_a_loop():
    rng = np.random.default_rng(0)
    iterates = {"w": rng.normal(size=(100, 3)), "b": rng.normal(size=100)}
    predict = lambda p, x: jnp.tanh(jnp.tensordot(x, p["w"], 1) + p["b"])
    x = rng.normal(size=(2, 3))
    got = inference.batch_means(
        predict,
        jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), iterates),
        jnp.asarray(x, jnp.float32),
        power=0.5,
        num_batches=4,
    )
    # Squares of k / 5 of a hundred.
    ends = [4, 16, 36, 64, 100]
    mean = lambda a, b: np.tanh(
        x @ iterates["w"][a:b].mean(0) + iterates["b"][a:b].mean()
    )
    parts = np.stack([mean(a, b) for a, b in itertools.pairwise(ends)])
    np.testing.assert_allclose(got.parts, parts, atol=10 * EPS32)
    value = mean(4, 100)
    np.testing.assert_allclose(got.value, value, atol=10 * EPS32)
    lengths = np.diff(ends)[:, None]
    error = np.sqrt(np.sum(lengths * (parts - value) ** 2, axis=0) / 3 / 96)
    np.testing.assert_allclose(got.standard_error, error, rtol=100 * EPS32)
    width = stats.t.ppf(0.975, 3) * error
    np.testing.assert_allclose(got.upper - got.lower, 2 * width, rtol=100 * EPS32)


def draw(num_repetitions, num):
    """Features of random sign, whose moments are all known, and uniform numbers."""
    rng = np.random.default_rng(0)
    signs = 2 * rng.integers(2, size=(num_repetitions, num, 2), dtype=np.int8) - 1
    return signs.astype(np.float32), rng.random((num_repetitions, num), np.float32)


def examples(kind, x, uniform):
    """Linear regression with uniform noise, or logistic regression."""
    if kind == "linear":
        return x, x @ TRUTH + uniform - 0.5
    return x, (uniform < jax.nn.sigmoid(x @ TRUTH)).astype(jnp.float32)


def iterates_of(objective, data, step_size, power, batch_size):
    """One run of SGD through the examples in their order."""
    cut = lambda a: a.reshape(-1, batch_size, *a.shape[1:])
    batches = jax.tree.map(cut, data)

    def step(w, both):
        batch, now = both
        slope = jax.grad(lambda w: objective(w, (), batch, new_key())[0])(w)
        w = w - step_size * (1 + now) ** -power * slope
        return w, w

    num = batches[1].shape[0]
    return jax.lax.scan(step, jnp.zeros(2), (batches, jnp.arange(num)))[1]


@functools.partial(jax.jit, static_argnums=(0, 1))
def both_intervals(kind, batch_size, step_size, x, uniform):
    objective = {"linear": SQUARED, "logistic": LOGISTIC}[kind]
    points, power = jnp.asarray(POINTS), 0.51

    def repetition(x, uniform):
        data = examples(kind, x, uniform)
        tree = inference.higrad(
            objective,
            linear,
            jnp.zeros(2),
            data,
            points,
            step_size=step_size,
            power=power,
            burn_in=100,
            batch_size=batch_size,
            # Independent examples need no order of their own in each repetition.
            key=new_key(1),
        )
        path = iterates_of(objective, data, step_size, power, batch_size)
        means = inference.batch_means(linear, path, points, power=power)
        return [(one.lower, one.upper) for one in (tree, means)]

    return jax.vmap(repetition)(x, uniform)


# In units of the inverse curvature, 1 and about 4.2, both begin with steps of 1.2.
@pytest.mark.parametrize(("kind", "step_size"), [("linear", 1.2), ("logistic", 5.0)])
def test_coverage_in_a_thousand_repetitions(kind, step_size):
    truth = POINTS @ TRUTH
    intervals = both_intervals(kind, 8, step_size, *draw(1000, 8 * 2300))
    intervals = jax.device_get(intervals)
    for lower, upper in intervals:
        covered = np.mean((lower <= truth) & (truth <= upper), axis=0)
        assert ((covered > 0.93) & (covered < 0.97)).all(), covered


def test_long_averages_keep_their_digits():
    # Steps of zero: the average is where it starts. A plain sum of 20,000 numbers in
    # float32 was off by 5e-5 of it, many times the standard error of such a run.
    still = dynamics.supervised(linear, lambda outputs, y: 0 * outputs)
    start = np.array([3.1, -0.7], np.float32)
    result = inference.higrad(
        still,
        linear,
        jnp.asarray(start),
        (jnp.ones((60_000, 2)), jnp.ones(60_000)),
        jnp.eye(2),
        step_size=0.1,
        key=new_key(),
        splits=(2,),
    )
    np.testing.assert_allclose(result.parts, start[None] * [[1], [1]], rtol=4 * EPS32)


@pytest.mark.parametrize("unit", [1e-25, 1e25])
def test_spreads_whose_squares_leave_the_range(unit):
    iterates = np.float32(unit) * jnp.array([9.0, 1.0, 3.0, 2.0, 4.0])
    result = inference.batch_means(
        lambda w, x: w * x, iterates, jnp.ones(1), power=0.0, num_batches=4
    )
    expected = unit * np.std([1, 3, 2, 4], ddof=1) / 2
    np.testing.assert_allclose(result.standard_error, [expected], rtol=1e-6)


def test_half_precision_loses_neither_steps_nor_averages():
    # Single precision between 1 and 1.008, the next number of bfloat16.
    rng = np.random.default_rng(0)
    iterates = jnp.asarray(1 + 0.01 * rng.normal(size=1200), jnp.bfloat16)
    times = lambda w, x: w * x
    means = inference.batch_means(times, iterates, jnp.ones(1), power=0.0)
    expected = np.asarray(iterates, float)[133:].std() / np.sqrt(1067)
    assert 0.3 * expected < float(means.standard_error[0]) < 2 * expected

    data = jnp.asarray(regression(70)[0], jnp.float32), jnp.ones(70)
    runs = [
        inference.higrad(
            SQUARED,
            linear,
            jnp.zeros(2, dtype),
            data,
            jnp.asarray(POINTS),
            step_size=1e-4,
            key=new_key(),
        )
        for dtype in (jnp.bfloat16, jnp.float32)
    ]
    np.testing.assert_array_equal(runs[0].parts, runs[1].parts)


def test_a_step_too_long_is_seen():
    x, y = regression(70)
    data = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
    run = functools.partial(
        inference.higrad, SQUARED, linear, jnp.zeros(2), data, jnp.asarray(POINTS)
    )
    broken = run(step_size=1e30, key=new_key())
    assert int(broken.num_nonfinite) == 4
    assert np.isnan(broken.lower).all()
    iterates = jnp.ones((30, 2)).at[25].set(jnp.inf)
    means = inference.batch_means(linear, iterates, jnp.asarray(POINTS), num_batches=3)
    assert int(means.num_nonfinite) == 1


def test_one_trace_for_new_arrays():
    traces = []

    def counted(w, model_state, batch, key):
        traces.append(1)
        return SQUARED(w, model_state, batch, key)

    for seed in (0, 1):
        x, y = regression(70, seed)
        data = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
        inference.higrad(
            counted,
            linear,
            jnp.full(2, float(seed)),
            data,
            jnp.asarray(POINTS),
            step_size=0.1 * (1 + seed),
            key=new_key(seed),
        )
        if seed == 0:
            before = len(traces)
    assert len(traces) == before


def test_refusals(user_land):
    x, y = regression(70)
    data = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
    points = jnp.asarray(POINTS)

    def refuses(match, objective=SQUARED, predict=linear, **changed):
        options = {"step_size": 0.1, "key": new_key()} | changed
        with pytest.raises(ValueError, match=match):
            inference.higrad(objective, predict, jnp.zeros(2), data, points, **options)

    refuses("`splits` must be a tuple", splits=())
    refuses("`splits` must be an integer of at least 2", splits=(2, 1))
    refuses("`lengths` must have one entry for each of the 3", lengths=(2, 2))
    refuses("70 examples make 70 steps of 1 .* need 77", lengths=(11, 11, 11))
    refuses("`data` must hold an example for each step", burn_in=70)
    refuses("`confidence` must be", confidence=1.0)
    refuses("`power` must be", power=0.5)
    refuses("`step_size` must be", step_size=0.0)
    refuses("`key` must be", key=0)
    refuses("`predict` must return", predict=lambda w, x: (w, w))
    refuses("`objective` must return a pair", objective=lambda w, s, b, k: w)
    means = inference.batch_means
    with pytest.raises(ValueError, match="`iterates` must be enough"):
        means(linear, jnp.ones((9, 2)), points)
    with pytest.raises(ValueError, match="`num_batches` must be"):
        means(linear, jnp.ones((9, 2)), points, num_batches=1)
    with pytest.raises(ValueError, match="`power` must be"):
        means(linear, jnp.ones((9, 2)), points, power=1.0)
    for name, options in (("power", {}), ("confidence", {"power": 0.0})):
        traced = lambda a, name=name, options=options: means(
            linear, jnp.ones((30, 2)), points, **options, **{name: a}
        )
        with pytest.raises(ValueError, match=f"`{name}` must be .* but is traced"):
            jax.jit(traced)(0.5)
