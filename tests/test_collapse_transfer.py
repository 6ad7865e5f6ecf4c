"""Transfer scores against NumPy and scipy, identities between them, and the pool."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg, optimize, stats

from jaxtheory.collapse import (
    CollapseTerms,
    choose_layer,
    collapse_transferability,
    gaussian_leep,
    leep,
    log_evidence,
    transfer_scores,
)
from jaxtheory.collapse import _transfer as module

LABELS = np.repeat([0, 1, 3], [14, 9, 7])


def cloud(noise=0.8, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(4, 5))[LABELS] + noise * rng.normal(size=(30, 5)) + 1


@pytest.fixture(scope="module")
def scores():
    with jax.enable_x64(True):
        return transfer_scores(jnp.asarray(cloud()), jnp.asarray(LABELS))


def test_variability_and_h_score_match_dense_scatters(scores):
    h = cloud()
    total = np.cov(h.T, bias=True)
    between = sum(
        (c == LABELS).mean() * np.outer(m, m)
        for c in (0, 1, 3)
        for m in [h[c == LABELS].mean(0) - h.mean(0)]
    )
    expected = np.trace(np.linalg.pinv(total) @ between)
    np.testing.assert_allclose(scores.h_score, expected, rtol=1e-10)
    np.testing.assert_allclose(
        scores.variability_collapse_index, 1 - expected / 2, rtol=1e-10
    )


def test_balanced_probe_error_is_the_index(x64):
    h, labels = cloud()[:30], np.arange(30) % 3
    found = transfer_scores(jnp.asarray(h), jnp.asarray(labels))
    design, targets = np.c_[h, np.ones(30)], np.eye(3)[labels]
    fit = design @ np.linalg.lstsq(design, targets, rcond=None)[0]
    error = ((targets - fit) ** 2).sum() / 30
    index = found.variability_collapse_index
    np.testing.assert_allclose(2 * index / 3, error, rtol=1e-10)
    np.testing.assert_allclose(found.h_score, 2 * (1 - index), rtol=1e-10)


def test_a_small_direction_of_many_examples_counts():
    labels = np.repeat([0, 1], 3_000)
    large = np.cos(np.arange(6_000) * np.pi)
    features = np.stack([large, 1e-4 * labels], 1).astype(np.float32)
    found = transfer_scores(jnp.asarray(features), jnp.asarray(labels))
    np.testing.assert_allclose(found.h_score, 1, rtol=1e-3)
    np.testing.assert_allclose(found.variability_collapse_index, 0, atol=1e-3)


def test_no_difference_has_no_index():
    found = transfer_scores(jnp.ones((30, 5)), jnp.asarray(LABELS))
    assert np.isnan(found.variability_collapse_index)


def test_only_nc1_ratio_changes_under_a_linear_map(scores, x64):
    mixed = cloud() @ np.random.default_rng(4).normal(size=(5, 5))
    found = transfer_scores(jnp.asarray(mixed), jnp.asarray(LABELS))
    np.testing.assert_allclose(found.h_score, scores.h_score, rtol=1e-9)


def test_fixed_point_is_the_exact_and_largest_evidence(scores, x64):
    h = cloud()
    found = log_evidence(jnp.asarray(h), jnp.asarray(LABELS))
    assert found.converged
    assert np.isnan(found.weight_precision[2])
    values = []
    for c in (0, 1, 3):
        target = (c == LABELS).astype(float)

        def evidence(logs, target=target):
            covariance = h @ h.T / np.exp(logs[0]) + np.eye(30) / np.exp(logs[1])
            normal = stats.multivariate_normal(np.zeros(30), covariance)
            return normal.logpdf(target) / 30

        logs = np.log([found.weight_precision[c], found.noise_precision[c]])
        values.append(evidence(logs))
        best = optimize.minimize(lambda logs: -evidence(logs), [0.0, 0.0], tol=1e-10)
        np.testing.assert_allclose(values[-1], -best.fun, rtol=1e-6)
    np.testing.assert_allclose(found.value, np.mean(values), rtol=1e-12)
    np.testing.assert_allclose(scores.log_evidence, found.value, rtol=1e-12)


def test_evidence_in_single_precision_and_other_units(scores):
    for scale in (1.0, 2.0**40):
        features = jnp.asarray(scale * cloud(), jnp.float32)
        found = log_evidence(features, jnp.asarray(LABELS))
        np.testing.assert_allclose(found.value, scores.log_evidence, rtol=2e-4)
        assert found.converged


def test_evidence_is_the_larger_of_two_maxima():
    rng, labels = np.random.default_rng(3), np.arange(200) % 4
    centres = rng.normal(size=(4, 16))[labels]
    spread = centres + 0.5 * rng.normal(size=(200, 16))
    features = (100 + spread / np.arange(1, 17)).astype(np.float32)
    left, values, _ = np.linalg.svd(features.astype(float), full_matrices=False)
    ratios = np.geomspace(1e-6, 1e9, 4000)[:, None]  # alpha over beta
    squares = values**2
    best = []
    for c in range(4):
        target = (labels == c).astype(float)
        along = (left.T @ target) ** 2
        outside = target.sum() - along.sum()
        # The best beta for a ratio is n over what is left.
        rest = (along * ratios / (squares + ratios)).sum(1) + outside
        log_beta = np.log(200 / rest)
        evidence = 200 * (log_beta - 1) - np.log1p(squares / ratios).sum(1)
        best.append(0.5 * (evidence.max() / 200 - np.log(2 * np.pi)))
    found = log_evidence(jnp.asarray(features), jnp.asarray(labels))
    np.testing.assert_allclose(found.value, np.mean(best), rtol=2e-3)


def test_features_that_fit_exactly_have_no_largest_evidence():
    labels = jnp.arange(6) % 2
    features = jnp.concatenate([jnp.eye(2)[labels], jnp.zeros((6, 2))], axis=1)
    assert not log_evidence(features, labels).converged


def test_features_that_say_nothing_have_the_evidence_of_zero_weights(x64):
    # Orthogonal to every one-hot label: y ~ N(0, I / beta) with beta = n / n_k.
    features = jnp.tile(jnp.array([[1.0], [-1.0]]), (6, 1))
    found = log_evidence(features, jnp.repeat(jnp.arange(3), 4))
    assert found.converged
    np.testing.assert_array_equal(found.weight_precision, [np.inf] * 3)
    np.testing.assert_allclose(found.noise_precision, [3, 3, 3], rtol=1e-9)
    expected = 0.5 * (np.log(3) - 1 - np.log(2 * np.pi))
    np.testing.assert_allclose(found.value, expected, rtol=1e-9)


def test_coding_rates_match_determinants(scores):
    h = cloud() - cloud().mean(0)
    rate = lambda z: np.linalg.slogdet(np.eye(5) + z.T @ z / (len(z) * 1e-4))[1] / 2
    within = sum((c == LABELS).mean() * rate(h[c == LABELS]) for c in (0, 1, 3))
    np.testing.assert_allclose(scores.trans_rate, rate(h) - within, rtol=1e-10)


def test_collapse_terms_match_discriminant_analysis(scores):
    h = cloud() - cloud().mean(0)
    means = np.array([h[c == LABELS].mean(0) for c in (0, 1, 3)])
    index = np.searchsorted([0, 1, 3], LABELS)
    within = (h - means[index]).T @ (h - means[index]) / 30
    total = h.T @ h / 30
    amount = max(np.exp(-np.trace(total) * 30 / 29), 1e-10)
    shrunk = lambda c: (1 - amount) * c + amount * np.trace(c) / 5 * np.eye(5)
    between = shrunk(total) - shrunk(within)
    vectors = linalg.eigh(between, shrunk(within))[1]
    nuclear = lambda a: np.linalg.svd(a, compute_uv=False).sum()
    low = h @ vectors[:, ::-1][:, :2]
    np.testing.assert_allclose(
        scores.collapse_terms.feature_rank, nuclear(low), rtol=1e-8
    )
    solved = np.linalg.solve(shrunk(within), means.T)
    prior = np.bincount(index) / 30
    logits = h @ solved - 0.5 * np.sum(means * solved.T, axis=1) + np.log(prior)
    posterior = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(
        scores.collapse_terms.nearest_centre,
        posterior[np.arange(30), index].mean(),
        rtol=1e-9,
    )
    expected = np.log(sum(nuclear(posterior[index == c]) for c in range(3)))
    np.testing.assert_allclose(scores.collapse_terms.variability, expected, rtol=1e-9)


def test_index_of_a_pool_rewards_collapse():
    terms = [
        transfer_scores(
            jnp.asarray(cloud(noise), jnp.float32), jnp.asarray(LABELS)
        ).collapse_terms
        for noise in (0.2, 0.8, 3.0)
    ]
    pool = CollapseTerms(*map(jnp.stack, zip(*terms, strict=True)))
    ranks = collapse_transferability(pool)
    assert ranks[0] > ranks[1] > ranks[2]
    rescale = lambda a: (a - a.min()) / (a.max() - a.min())
    expected = [rescale(np.asarray(term)) for term in pool]
    np.testing.assert_allclose(
        ranks, expected[0] + expected[1] - expected[2], rtol=1e-5
    )


def test_what_is_left_out_is_counted(scores):
    rows = np.concatenate([cloud(), np.full((1, 5), np.nan)])
    found = transfer_scores(
        jnp.asarray(rows, jnp.float32), jnp.asarray(np.append(LABELS, 0))
    )
    assert int(found.num_left_out) == 1
    assert jnp.isnan(found.log_evidence)
    np.testing.assert_allclose(found.h_score, scores.h_score, rtol=1e-4)
    np.testing.assert_allclose(found.trans_rate, scores.trans_rate, rtol=1e-4)


def test_under_jit_and_one_trace(scores, monkeypatch):
    traces = []
    original = module.project
    monkeypatch.setattr(module, "project", lambda *a: traces.append(1) or original(*a))
    measure = jax.jit(lambda h, y: transfer_scores(h, y, num_classes=4))
    for scale in (1.0, 1.0 + 1e-7):
        found = measure(jnp.asarray(scale * cloud(), jnp.float32), jnp.asarray(LABELS))
    assert len(traces) == 1
    np.testing.assert_allclose(found.trans_rate, scores.trans_rate, rtol=1e-4)
    np.testing.assert_allclose(
        found.collapse_terms.variability, scores.collapse_terms.variability, rtol=1e-4
    )


def test_layer_to_transfer_from():
    layers = {
        name: jnp.asarray(cloud(noise), jnp.float32)
        for name, noise in [("early", 3.0), ("middle", 0.2), ("late", 0.8)]
    }
    labels = jnp.asarray(LABELS)
    found = choose_layer(layers, labels)
    assert int(found.best) == 1
    assert found.names == tuple(layers)
    expected = [log_evidence(h, labels).value for h in layers.values()]
    np.testing.assert_allclose(found.scores, expected, rtol=1e-5)
    index = choose_layer(list(layers.values()), labels, score="variability_collapse")
    assert int(index.best) == 1
    broken = [jnp.full((30, 5), jnp.nan), *layers.values()]
    assert int(choose_layer(broken, labels).best) == 2


def test_leep_matches_loops():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(6), size=30)
    total = 0.0
    for row, label in zip(p, LABELS, strict=True):
        joint = p[label == LABELS].sum(0) / p.sum(0)
        total += np.log(row @ joint) / 30
    found = leep(jnp.asarray(p, jnp.float32), jnp.asarray(LABELS))
    np.testing.assert_allclose(found, total, rtol=1e-5)


def test_leep_of_a_traced_label_out_of_range_is_not_a_number():
    score = jax.jit(lambda y: leep(jnp.full((4, 2), 0.5), y, num_classes=2))
    np.testing.assert_allclose(score(jnp.array([0, 1, 0, 1])), np.log(0.5), rtol=1e-6)
    for wrong in (-1, 2):
        assert jnp.isnan(score(jnp.array([0, 1, wrong, 1])))


def test_gaussian_leep_tells_clusters_from_a_blur():
    labels = jnp.arange(90) % 3
    noise = jax.random.normal(jax.random.key(0), (90, 4))
    values = [
        gaussian_leep(
            jnp.eye(3, 4)[labels] + s * noise,
            labels,
            key=jax.random.key(1),
            components_per_class=2,
        )
        for s in (0.05, 0.5, 100.0)
    ]
    assert 0 >= values[0] > values[1] > values[2]
    assert values[0] > -0.2
    np.testing.assert_allclose(values[2], -np.log(3), atol=0.35)
    nothing = gaussian_leep(
        noise.at[0, 0].set(jnp.nan),
        labels,
        key=jax.random.key(1),
        components_per_class=2,
    )
    assert jnp.isnan(nothing)


H, Y = jnp.ones((6, 2)), jnp.arange(6) % 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: transfer_scores(H, Y, distortion=0.0), r"`distortion` must be pos"),
        (lambda: log_evidence(H, Y[:3]), r"`labels` must have as many examples"),
        (lambda: choose_layer([], Y), r"`layers` must hold at least one"),
        (lambda: choose_layer([H], Y, score="h"), r"`score` must be one of.*'h'"),
        (lambda: leep(jnp.ones(6), Y), r"`assignments` must be a matrix"),
        (
            lambda: gaussian_leep(H, Y, key=jax.random.key(0)),
            r"`components_per_class` must be at most 3 for 6 examples",
        ),
        (
            lambda: collapse_transferability(CollapseTerms(*jnp.ones((3, 1)))),
            r"`terms` must hold vectors.*at least two",
        ),
    ],
)
def test_bad_input_names_the_fix(call, message, user_land):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "change",
    [lambda p: 3 * p, lambda p: -p, jnp.log, lambda p: p.at[0, 0].set(jnp.nan)],
)
def test_leep_of_rows_that_are_no_probabilities(change):
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(12, 4)), jnp.float32)
    rows, labels = jax.nn.softmax(logits), jnp.arange(12) % 3
    assert leep(rows, labels) <= 0
    assert jnp.isnan(leep(change(rows), labels))


def test_scores_of_no_example_at_all():
    found = transfer_scores(jnp.full((6, 2), jnp.nan), jnp.arange(6) % 3)
    assert np.isnan(found.h_score)
    assert np.isnan(found.log_evidence)
    assert not found.evidence_converged
