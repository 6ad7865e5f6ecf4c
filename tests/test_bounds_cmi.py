"""Information of supersamples: closed forms, every coin and label enumerated, loops,
and a population of networks whose gap is known."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtheory import dynamics
from jaxtheory.bounds import evaluated_cmi, functional_cmi
from jaxtheory.bounds._cmi import _information


def coins(rng, runs, pairs):
    half = rng.integers(0, 2, (runs // 2, pairs))
    return np.concatenate([half, 1 - half])


def test_who_ignores_the_data_has_no_gap():
    rng = np.random.default_rng(0)
    labels, guesses = rng.integers(0, 3, (2, 20, 2))
    losses = np.broadcast_to(guesses != labels, (11, 20, 2)) * 1.0
    predictions = np.broadcast_to(guesses, (11, 20, 2))
    selectors = rng.integers(0, 2, (11, 20))  # not balanced, which costs nothing here
    for bound in (
        functional_cmi(predictions, losses, selectors),
        evaluated_cmi(losses, selectors),
    ):
        assert bound.complexity == 0
        used = np.take_along_axis(losses, selectors[..., None], axis=2)
        assert bound.value == bound.empirical_risk == used.mean()
        assert (bound.certificate, bound.delta) == (False, None)


@pytest.mark.parametrize("largest", [1.0, 2.5])
def test_who_knows_the_data_by_heart_has_the_largest_bound(largest):
    selectors = coins(np.random.default_rng(1), 10, 30)
    right = np.stack([selectors == 0, selectors == 1], axis=-1)
    losses = largest * (1 - right)
    shared = {"loss_bound": largest}
    expected = largest * np.sqrt(2 * np.log(2))
    for bound in (
        functional_cmi(right.astype(int), losses, selectors, **shared),
        evaluated_cmi(losses, selectors, **shared),
    ):
        assert bound.complexity == pytest.approx(expected, rel=1e-14)
        assert bound.empirical_risk == 0
        assert bound.vacuous
    exact = evaluated_cmi(losses, selectors, form="interpolating", **shared)
    assert exact.value == pytest.approx(largest, rel=1e-14)


def test_rare_predictions_are_as_said_and_no_estimate_is_below_the_gap_of_its_runs():
    rng, runs, pairs = np.random.default_rng(7), 20, 4000
    selectors = coins(rng, runs, pairs)
    rare = (rng.random((runs, pairs)) < 0.05) & (selectors == 1)
    losses = np.stack([rare, np.zeros_like(rare)], axis=-1) * 1.0
    bound = evaluated_cmi(losses, selectors)
    h = lambda p: -p * np.log(p) - (1 - p) * np.log(1 - p)
    assert np.sqrt(2 * (h(0.025) - h(0.05) / 2)) == pytest.approx(0.188, abs=5e-4)
    error = np.sqrt(2 * np.log(2) / runs / pairs)  # more than the deviation of a root
    assert abs(bound.complexity - 0.119) < 4 * error
    values = np.sqrt(2 * _information(losses, selectors).values)
    sign = 2 * selectors - 1
    gaps = np.mean(sign * (losses[..., 0] - losses[..., 1]), axis=0)
    assert np.all(np.abs(gaps) <= values + 1e-12)
    assert gaps.max() > 0.1


def majority(labels):
    """Predicts the more frequent label everywhere, of an odd number."""
    return (labels.mean(axis=-1) > 0.5).astype(int)


def test_holds_for_every_supersample_and_all_coins_and_is_no_estimate_there():
    # All 2^6 labels of three pairs and all 2^3 coins: expectations are exact.
    selectors = np.array(list(itertools.product([0, 1], repeat=3)))
    bias = 0.7
    totals = np.zeros(3)
    for flat in itertools.product([0, 1], repeat=6):
        labels = np.array(flat).reshape(3, 2)
        weight = np.prod(np.where(labels == 1, bias, 1 - bias))
        trained = labels[np.arange(3)[None], selectors]
        predictions = np.broadcast_to(majority(trained)[:, None, None], (8, 3, 2))
        losses = (predictions != labels[None]) * 1.0
        bounds = functional_cmi(predictions, losses, selectors)
        finer = evaluated_cmi(losses, selectors)
        assert finer.complexity <= bounds.complexity + 1e-12
        gap = np.mean(
            [
                losses[r, i, 1 - u] - losses[r, i, u]
                for r, run in enumerate(selectors)
                for i, u in enumerate(run)
            ]
        )
        assert gap <= finer.complexity + 1e-12  # it does so for every supersample
        totals += weight * np.array([gap, finer.complexity, bounds.complexity])
    # The gap in closed form: with s ones among three trained labels.
    p = bias
    train = 3 * p * (1 - p) / 3  # one of three is wrong unless all agree
    one = p**3 + 3 * p**2 * (1 - p)
    test = one * (1 - p) + (1 - one) * p
    assert totals[0] == pytest.approx(test - train, rel=1e-12)
    assert 0.01 < totals[0] < totals[1] <= totals[2] * (1 + 1e-12) < 1


def test_interpolating_is_nearly_the_risk():
    # A table of what was seen, and 0 elsewhere; 12 places, labels by place.
    rng, pairs, runs = np.random.default_rng(3), 6, 400
    table = np.array([0, 1] * 6)
    selectors = coins(rng, runs, pairs)
    x = rng.integers(0, 12, (pairs, 2))
    trained = x[np.arange(pairs)[None], selectors]
    seen = (x[None, :, :, None] == trained[:, None, None, :]).any(-1)
    losses = (~seen & (table[x] == 1)[None]) * 1.0
    bound = evaluated_cmi(losses, selectors, form="interpolating")
    rest = np.take_along_axis(losses, 1 - selectors[..., None], axis=2)
    assert bound.empirical_risk == 0
    assert 0.1 < rest.mean() <= bound.value < rest.mean() + 0.2
    assert bound.value < evaluated_cmi(losses, selectors).value


def by_loops(outcomes, selectors):
    """Plug-in information of each pair, from a table of frequencies."""
    found = []
    for f, u in zip(outcomes.transpose(1, 0, 2), selectors.T, strict=True):
        _, codes = np.unique(f, axis=0, return_inverse=True)
        joint = np.zeros((codes.max() + 1, 2))
        np.add.at(joint, (codes.ravel(), u), 1 / len(u))
        product = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
        used = joint > 0
        found.append(np.sum(joint[used] * np.log(joint[used] / product[used])))
    return np.array(found)


def test_matches_loops_also_without_each_run():
    rng = np.random.default_rng(4)
    outcomes, selectors = rng.integers(0, 3, (12, 5, 2)), rng.integers(0, 2, (12, 5))
    found = _information(outcomes, selectors)
    expected = by_loops(outcomes, selectors)
    np.testing.assert_allclose(found.values, expected, atol=1e-12)
    for run in range(12):
        others = np.arange(12) != run
        expected = by_loops(outcomes[others], selectors[others])
        np.testing.assert_allclose(found.left_out[run], expected, atol=1e-12)
    predictions, losses = outcomes, 0.5 * (outcomes == 1)
    gaps = np.sqrt(2 * np.maximum(found.left_out, 0)).mean(axis=1)
    error = np.sqrt(11 / 12 * np.sum((gaps - gaps.mean()) ** 2))
    text = functional_cmi(predictions, losses, selectors).assumptions
    assert any(f"standard error of {error:.2g}" in one for one in text)
    assert any("is not balanced" in one for one in text)


def test_the_bias_is_what_is_said():
    # Predictions of pure chance tell nothing: all that is found is bias.
    rng, runs = np.random.default_rng(5), 60
    outcomes = rng.integers(0, 2, (runs, 4000, 2))
    found = _information(outcomes, coins(rng, runs, 4000))
    assert found.balanced
    assert found.bias == pytest.approx(3 / (2 * runs), rel=1e-3)
    error = found.values.std() / np.sqrt(4000)
    assert abs(found.values.mean() - found.bias) < 0.05 * found.bias + 4 * error


def test_a_population_of_networks_with_a_known_risk():
    # Two Gaussian classes at +-0.5 on the first of 8 axes; 10 pairs, 32 runs at once.
    runs, pairs, dim, shift = 32, 10, 8, 0.5
    rng = np.random.default_rng(6)
    y = rng.choice([-1.0, 1.0], 2 * pairs)
    x = rng.normal(size=(2 * pairs, dim))
    x[:, 0] += shift * y
    selectors = coins(rng, runs, pairs)
    used = np.eye(2)[selectors].reshape(runs, 2 * pairs).astype(np.float32)

    def objective(w, used, batch, key):
        x, y, index = batch
        losses = optax.losses.sigmoid_binary_cross_entropy(x @ w, (y + 1) / 2)
        return jnp.mean(2 * used[index] * losses), used

    optimizer = optax.sgd(1.0)
    states = dynamics.init_population(
        optimizer, jnp.zeros((runs, dim)), model_state=jnp.asarray(used)
    )
    data = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
    history = dynamics.train_population(
        objective,
        states,
        optimizer,
        (*data, jnp.arange(2 * pairs)),
        num_steps=100,
        keys=jax.random.split(jax.random.key(0), runs),
        progress=False,
    )
    w = np.asarray(history.state.params, np.float64)
    scores = (w @ x.T).reshape(runs, pairs, 2)
    predictions = (scores > 0).astype(int)
    losses = (predictions != (y.reshape(pairs, 2) > 0)[None]) * 1.0
    functional = functional_cmi(predictions, losses, selectors)
    evaluated = evaluated_cmi(losses, selectors)
    # The true risk of a direction: a normal tail.
    from scipy.stats import norm

    risk = norm.cdf(-shift * w[:, 0] / np.linalg.norm(w, axis=1)).mean()
    assert functional.empirical_risk < 0.1 < 0.3 < risk
    assert risk <= evaluated.value <= functional.value + 1e-12
    assert evaluated.complexity < 1.1


P, L, U = np.zeros((4, 3, 2), int), np.zeros((4, 3, 2)), np.eye(4, 3, dtype=int)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((P, L[:1], U[:1]), r"`losses` must hold.*at least two runs.*\(1, 3, 2\)"),
        ((P, L.reshape(4, 6), U), r"`losses` must hold.*reshape\(t, n, 2\)"),
        ((P, L + 2, U), r"`losses` must lie between 0 and `loss_bound` = 1, but 24"),
        ((P, L, U[:, :2]), r"`selectors` must be 0 or 1.*\[4, 3\].*\(4, 2\)"),
        ((P, L, U + 1), r"`selectors` must be 0 or 1"),
        ((P, L, U * 1j), r"`selectors` must be 0 or 1.*complex128"),
        ((P, L, 0 * U), r"`selectors` must differ between runs.* 3 of the 3 pairs"),
        ((P, L, U * [1, 1, 0]), r"`selectors` must differ.* 1 of the 3.*balanced"),
        # Classes that never change have no information; their losses may.
        (
            (P, 0.5 + 0.1 * U[..., None] * [1, -1], U),
            r"`losses` must follow from `predictions`.* 6 of 6 examples.*evaluated_cmi",
        ),
        ((P[:3], L, U), r"`predictions` must have the shape of `losses`, \(4, 3, 2\)"),
        ((L, L, U), r"`predictions` must be class indices.*float64.*argmax"),
    ],
)
def test_bad_input_names_the_fix(arguments, message, user_land):
    with pytest.raises(ValueError, match=message):
        functional_cmi(*arguments)


def test_options_and_values(user_land):
    with pytest.raises(ValueError, match=r"`form` must be one of 'square_root'"):
        evaluated_cmi(L, U, form="fast")  # pyright: ignore
    with pytest.raises(ValueError, match=r"`losses` must be 0 for all.*100.0%"):
        evaluated_cmi(L + 1, U, form="interpolating")
    with pytest.raises(ValueError, match=r"`loss_bound` must be positive and finite"):
        evaluated_cmi(L, U, loss_bound=0.0)
    with pytest.raises(ValueError, match=r"`predictions` must be a concrete value"):
        jax.jit(lambda p: functional_cmi(p, L, U).value)(jnp.asarray(P))
