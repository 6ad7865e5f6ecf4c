"""Margin bounds of dense networks: their parts against loops, and simulated coverage.

Every label of the simulation is a fair coin, so that any classifier errs with
probability 1/2, and the learner knows all examples by heart.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtheory.bounds import margin_distribution, path_norm, spectral
from jaxtheory.bounds._norms_layers import read_layers
from jaxtheory.bounds._norms_margins import grid_price, grid_up
from jaxtheory.bounds._norms_spectral import _chain, _norms, _radii

RNG = np.random.default_rng(0)
SIZES, LAYERS = (4, 6, 5, 3), ("first", "second", "last")
PARAMS = {
    name: {"kernel": RNG.normal(size=shape), "bias": RNG.normal(size=shape[1])}
    for name, shape in zip(LAYERS, itertools.pairwise(SIZES), strict=True)
}
X, Y = RNG.normal(size=(50, 4)), RNG.integers(0, 3, 50)
SHARED = {"layers": LAYERS, "delta": 0.05}


def deviation(n, nats, delta=0.05):
    return 3 * np.sqrt((np.log(2 / delta) + nats) / (2 * n))


def test_the_best_margin_of_the_grid():
    margins = RNG.normal(1.0, 0.7, 300)
    bound = margin_distribution(margins, 0.02, delta=0.05)
    values = []
    for q in range(-30, 60):
        gamma = np.sqrt(2.0) ** q
        ramp = np.mean([min(1, max(0, 1 - m / gamma)) for m in margins])
        price = -np.log(2 / (3 * (abs(q) + 1) * (abs(q) + 2)))
        values.append(ramp + 0.04 / gamma + deviation(300, price))
    assert bound.value == pytest.approx(min(values), rel=1e-12)
    assert bound.complexity == pytest.approx(bound.value - bound.empirical_risk)
    assert not bound.certificate
    assert "taken on trust: `rademacher`" in "".join(bound.assumptions)


def test_the_margin_at_a_quantile_is_rounded_down():
    margins = np.arange(1.0, 101.0)
    bound = margin_distribution(margins, 5.0, delta=0.05, quantile=0.1)
    gamma = 8.0  # the tenth margin is 10
    ramp = np.mean(np.clip(1 - margins / gamma, 0, 1))
    expected = ramp + 10 / gamma + deviation(100, grid_price(6))
    assert bound.value == pytest.approx(expected, rel=1e-12)
    assert "the margin 8 (above those of 7.0% of the examples)" in bound.assumptions[-1]
    # Vacuous by much, which the best margin never shows.
    assert bound.value > margin_distribution(margins, 5.0, delta=0.05).value


def test_the_grid_has_probability_one_and_no_norm_is_above_it():
    weights = np.exp([-grid_price(q) for q in range(-(10**4), 10**4 + 1)])
    assert 1 - 2e-4 < weights.sum() < 1
    for value in (1e-9, 0.3, 1.0, 2 ** (1 / 8), 7.7, 1e6):
        limit, price = grid_up(value)
        assert value <= limit < value * 2 ** (1 / 8) * (1 + 1e-8)
        assert price == grid_price(round(8 * np.log2(limit)))


def test_margins_without_size_have_no_bound_below_one():
    assert margin_distribution(np.zeros(5), 0.0, delta=0.05).value > 1


def test_path_norm_adds_up_paths():
    k1, k2, k3 = (np.abs(PARAMS[name]["kernel"]) for name in LAYERS)
    b1, b2, b3 = (np.abs(PARAMS[name]["bias"]) for name in LAYERS)
    total = sum(
        k1[i, j] * k2[j, k] * k3[k, o]
        for i, j, k, o in itertools.product(*map(range, SIZES))
    )
    total += sum(
        b1[j] * k2[j, k] * k3[k, o]
        for j, k, o in itertools.product(*map(range, SIZES[1:]))
    )
    total += sum(b2[k] * k3[k, o] for k in range(5) for o in range(3)) + sum(b3)
    phi, price = grid_up(total)
    largest = max(np.sqrt(50), *np.sqrt((X**2).sum(0)))
    rademacher = 2 * phi * largest / 50 * np.sqrt(2 * np.log(2**3 * 5 * 3))
    bound = path_norm(PARAMS, X, Y, **SHARED)
    _, _, margins = problem(PARAMS)
    values = []
    for q in range(-20, 60):
        gamma = np.sqrt(2.0) ** q
        ramp = np.mean(np.clip(1 - margins / gamma, 0, 1))
        nats = price + grid_price(q)
        values.append(ramp + 2 * rademacher / gamma + deviation(50, nats))
    assert bound.value == pytest.approx(min(values), rel=1e-9)
    assert bound.certificate
    assert bound.vacuous


def problem(params):
    """Outputs, in another way than the library's, and margins."""
    h = X
    for name in LAYERS[:-1]:
        h = np.maximum(h @ params[name]["kernel"] + params[name]["bias"], 0)
    outputs = h @ params["last"]["kernel"] + params["last"]["bias"]
    margins = [f[c] - np.delete(f, c).max() for f, c in zip(outputs, Y, strict=True)]
    return h, outputs, np.array(margins)


def test_path_norm_does_not_see_the_scale_of_a_unit():
    scales = np.exp(RNG.normal(size=6))
    scaled = dict(PARAMS)
    scaled["first"] = {name: a * scales for name, a in PARAMS["first"].items()}
    kernel = PARAMS["second"]["kernel"] / scales[:, None]
    scaled["second"] = {**PARAMS["second"], "kernel": kernel}
    bounds = [path_norm(p, X, Y, **SHARED).value for p in (PARAMS, scaled)]
    assert bounds[0] == pytest.approx(bounds[1], rel=1e-12)


def test_path_norm_limits_the_rademacher_complexity():
    # Of one hidden layer and one input weight each: a maximum over 2 d k functions,
    # here exactly for all signs of 10 examples.
    x = X[:10]
    signs = np.array(list(itertools.product([-1, 1], repeat=10)))
    positive, negative = np.maximum(x, 0), np.maximum(-x, 0)
    units = np.concatenate([positive, negative], axis=1)
    exact = np.abs(signs @ units).max(axis=1).mean() / 10
    limit = np.sqrt((x**2).sum(0).max()) / 10 * np.sqrt(2 * np.log(2**2 * 4))
    assert 0.3 * limit < exact < limit


def test_spectral_covers_as_published():
    layers = read_layers(PARAMS, LAYERS)
    layers = [layer._replace(bias=None) for layer in layers]
    start = [layer._replace(kernel=0.9 * layer.kernel) for layer in layers]
    norms, price = _norms(layers, start)
    assert price == pytest.approx(
        sum(grid_price(round(8 * np.log2(v))) for v in norms.ravel())
    )
    for (s, b), layer in zip(norms, layers, strict=True):
        exact = np.linalg.svd(layer.kernel)[1][0]
        columns = sum(0.1 * np.linalg.norm(c) for c in layer.kernel.T)
        assert exact <= s <= exact * 1.0906
        assert columns <= b <= columns * 1.0906
    radii, logs = _radii(layers, norms, X)
    complexity = norms[:, 0].prod() * sum((norms[:, 1] / norms[:, 0]) ** (2 / 3)) ** 1.5
    expected = complexity**2 * (X**2).sum()
    assert np.square(radii).sum() == pytest.approx(expected, rel=1e-12)
    assert np.exp(logs) == pytest.approx([2 * 24, 2 * 30, 2 * 15])


def test_the_chain_of_scales():
    radii, logs, n, gamma = np.array([3.3, 512.7]), np.array([2.0, 5.0]), 64, 0.5
    best = np.inf
    for length in range(1, 30):
        total, before, e = 0.0, 0.0, 4.0
        for _ in range(length):
            e /= 2
            counts = [(r * np.sqrt(2) / (e * gamma)) ** 2 for r in radii]
            now = sum(
                np.ceil(c) * a for c, a in zip(counts, logs, strict=True) if c > 1
            )
            total += 3 * e * np.sqrt(2 * (now + before)) / n
            before = now
        best = min(best, total + e / 8)
    (found,) = _chain(radii, logs, n, np.array([gamma]))
    assert found == pytest.approx(best, rel=1e-12)


def test_a_few_random_matrices_come_near_a_layer():
    # Maurey: the mean of `count` of the 2 d k matrices errs by b |X|_F / sqrt(count).
    kernel, count = PARAMS["first"]["kernel"], 20
    columns = np.linalg.norm(X, axis=0)
    b = np.linalg.norm(kernel, axis=0).sum()
    radius = b * np.linalg.norm(X)
    weights = np.abs(kernel) * columns[:, None] / radius
    assert weights.sum() <= 1
    atoms = np.zeros((kernel.size + 1, *kernel.shape))  # the last is zero
    places = np.arange(kernel.size)
    atoms[places, places // 6, places % 6] = (
        radius * np.sign(kernel.ravel()) / np.repeat(columns, 6)
    )
    law = np.append(weights.ravel(), 1 - weights.sum())
    drawn = np.random.default_rng(1).choice(len(law), size=(400, count), p=law)
    means = atoms[drawn].mean(axis=1)
    errors = ((X @ (means - kernel)) ** 2).sum(axis=(1, 2))
    assert errors.mean() < radius**2 / count
    assert ((X @ atoms[places]) ** 2).sum((1, 2)).max() <= radius**2 * (1 + 1e-12)


def test_spectral_with_a_start_near_by_and_biases():
    near = jax.tree.map(lambda a: 0.99 * a, PARAMS)
    given = {**SHARED, "quantile": 0.9}
    far = spectral(PARAMS, X, Y, **given)
    bound = spectral(PARAMS, X, Y, initial_params=near, **given)
    assert bound.value < far.value / 10
    assert bound.certificate
    assert any("`initial_params` were fixed" in text for text in bound.assumptions)
    # A bias is a weight of an input 1: here written so by hand, in the first layer.
    ones = np.concatenate([X, np.ones((50, 1))], axis=1)
    kernel = np.vstack([PARAMS["first"][part] for part in ("kernel", "bias")])
    joined = {**PARAMS, "first": {"kernel": kernel}}
    assert spectral(joined, ones, Y, **given).value == pytest.approx(far.value)
    tanh = spectral(PARAMS, X, Y, activation="tanh", **{**given, "quantile": None})
    assert tanh.certificate


def test_inputs_of_zeros_leave_the_confidence_alone():
    params = {"last": {"kernel": np.eye(3)}}
    for bound in (path_norm, spectral):
        found = bound(params, 0 * X[:, :3], Y, layers=("last",), delta=0.05)
        assert 1 < found.value < 3
        assert found.empirical_risk == 1


def test_what_overflows_is_infinite_and_nothing_underflows():
    layers = {name: {"kernel": PARAMS[name]["kernel"]} for name in LAYERS}
    far = layers | {"first": {"kernel": 1e200 * layers["first"]["kernel"]}}
    for bound in (path_norm, spectral):
        wide = far | {"second": {"kernel": 1e200 * layers["second"]["kernel"]}}
        found = bound(wide, 1e-300 * X, Y, **SHARED)
        assert (found.value, found.vacuous) == (np.inf, True)
        # The same network: its squared inputs are below the smallest number.
        near = bound(layers, X, Y, quantile=0.9, **SHARED)
        same = bound(far, 1e-200 * X, Y, quantile=0.9, **SHARED)
        assert same.complexity > 0.8 * near.complexity
    small = margin_distribution(np.array([5e-324, 1e308]), 0.0, delta=0.05)
    assert np.isfinite(small.value)
    assert margin_distribution(np.ones(2), 1e308, delta=0.05).value > 1e290


def test_the_architecture_is_a_setting():
    for bound in (path_norm, spectral):
        text = bound(PARAMS, X, Y, **SHARED).assumptions
        assert any(one.startswith("setting: the layers, their sizes") for one in text)


def test_single_precision_parameters_of_flax_and_images():
    single = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), PARAMS)
    images = X.astype(np.float32).reshape(50, 2, 2)
    for bound in (path_norm, spectral):
        found = bound({"params": single}, jnp.asarray(images), jnp.asarray(Y), **SHARED)
        assert found.value == pytest.approx(bound(PARAMS, X, Y, **SHARED).value, 1e-5)


@pytest.mark.parametrize("bound", [path_norm, spectral])
def test_holds_for_one_who_learns_by_heart(bound):
    n, places, delta = 60, 128, 0.05
    rng, failures, unpaid = np.random.default_rng(2), 0, 0
    for _ in range(1000):
        place, y = rng.integers(0, places, n), rng.integers(0, 2, n)
        x, weights = np.zeros((n, places)), np.zeros((places, 2))
        x[np.arange(n), place] = 1
        np.add.at(weights, place, np.eye(2)[y] - 0.5)
        params = {"output": {"kernel": weights}}
        found = bound(params, x, y, layers=("output",), delta=delta)
        failures += found.value < 0.5
        # Neither the class nor the margin paid for: Hoeffding's of the training error.
        errors = np.mean((x @ weights).argmax(1) != y)
        unpaid += errors + np.sqrt(np.log(1 / delta) / (2 * n)) < 0.5
    assert failures <= delta * 1000
    assert unpaid > 4 * delta * 1000


P = {"first": {"kernel": np.ones((4, 3))}, "last": {"kernel": np.eye(3)}}
SHARED_P = {"layers": ("first", "last"), "delta": 0.05}
GOOD = {"params": P, "x": X, "y": Y, **SHARED_P}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"delta": 0.0}, r"`delta` must be strictly between 0 and 1"),
        ({"layers": "first"}, r"`layers` must name the layers.*'first'"),
        ({"layers": ("last", "first")}, r"`layers` must feed each other.*\(3, 3\)"),
        ({"layers": ("first", "no")}, r"`layers` must name dense.*'no' is no layer"),
        ({"params": {"first": {"kernel": np.ones((3, 3, 1, 4))}}}, r"convolutions"),
        ({"params": {"first": {"kernel": np.full((4, 3), np.nan)}}}, r"finite"),
        ({"params": P | {"norm": {"scale": np.ones(3)}}}, r"leaves out \['norm'\]"),
        ({"params": P | {"first": P["last"] | {"bias": np.ones(1)}}}, r"bias': \(1,\)"),
        ({"params": {"first": {"kernel": np.ones((4, 0))}}}, r"'kernel': \(4, 0\)"),
        ({"layers": None}, r"`layers` must name the layers.*None"),
        ({"layers": (["first"], "last")}, r"`layers` must name the layers"),
        ({"x": X + 1j}, r"`x` must be one array of real numbers.*complex128"),
        ({"x": {"a": X}}, r"`x` must be one array of real numbers.*object"),
        ({"x": 1e308 * X**0}, r"`params` and `x` must give finite outputs"),
        ({"x": X[:, :3]}, r"`x` must have 4 numbers an example.*\(50, 3\)"),
        ({"x": np.full((50, 4), np.inf)}, r"`x` must be at least two finite inputs"),
        ({"y": Y[:9]}, r"`y` must have as many examples"),
        ({"y": Y + 1}, r"`y` must hold class indices.*is 3.*from 1 to 3"),
        ({"y": np.eye(3)[Y]}, r"`y` must be a vector of class indices.*argmax"),
        ({"quantile": 2.0}, r"`quantile` must be in \[0, 1\]"),
        ({"quantile": 0.0}, r"`quantile` must be one at which the margin is positive"),
    ],
)
@pytest.mark.parametrize("bound", [path_norm, spectral])
def test_bad_input_names_the_fix(bound, change, message, user_land):
    given = GOOD | change
    data = [given.pop(name) for name in ("params", "x", "y")]
    with pytest.raises(ValueError, match=message):
        bound(*data, **given)


@pytest.mark.parametrize(
    ("margins", "rademacher", "message"),
    [
        (np.ones((2, 2)), 0.1, r"`margins` must be one real number.*\(2, 2\)"),
        (np.array([1.0, np.nan]), 0.1, r"`margins` must be finite, but 1 of 2"),
        (np.ones(3), -0.1, r"`rademacher` must be finite and at least 0, but was -0.1"),
    ],
)
def test_margins_and_complexity_must_be_numbers(
    margins, rademacher, message, user_land
):
    with pytest.raises(ValueError, match=message):
        margin_distribution(margins, rademacher, delta=0.05)


def test_only_what_the_proofs_allow(user_land):
    with pytest.raises(ValueError, match=r"`activation` must be one of 'relu', 'tanh'"):
        spectral(P, X, Y, layers=("first", "last"), delta=0.1, activation="gelu")  # pyright: ignore
    start = {"first": P["first"]}
    with pytest.raises(ValueError, match=r"`initial_params` must have the structure"):
        spectral(P, X, Y, layers=("first", "last"), delta=0.05, initial_params=start)
    with pytest.raises(ValueError, match=r"`x` must be a concrete value"):
        jax.jit(lambda x: path_norm(P, x, Y, layers=("first", "last"), delta=0.1))(X)
    with pytest.raises(ValueError, match=r"`quantile` must be a concrete value"):
        jax.jit(lambda q: path_norm(P, X, Y, quantile=q, **SHARED_P))(0.9)
