"""The duality bound: zero at every optimum known, and never above any objective."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax, xlogy

from jaxtheory.collapse import theory

DECAY = {"weight_decay": 5e-3, "feature_decay": 5e-3}
LABELS = np.repeat(np.arange(4), 10)
COUNTS = [20, 10, 5, 5]
CLASSES = np.arange(4)


def gap_of(loss, optimum, counts, **options):
    return theory.optimality_gap(
        loss,
        np.arange(len(counts)),
        counts=counts,
        classifier=(optimum.layers[0], optimum.bias),
        features=optimum.features,
        **options,
    )


def test_the_published_pair_of_numbers():
    best = theory.balanced_optimum("cross_entropy", 4, 10, **DECAY)
    classifier = (best.layers[0], None)
    gap = theory.optimality_gap(
        "cross_entropy",
        LABELS,
        classifier=classifier,
        features=best.features[LABELS],
        **DECAY,
    )
    np.testing.assert_allclose(gap.primal, 0.24300160198505388, rtol=1e-15)
    np.testing.assert_allclose(gap.dual, 0.24300160198505374, rtol=1e-15)
    assert abs(gap.gap) < 1e-15
    np.testing.assert_allclose([gap.scale, gap.gradient_ratio], 1, rtol=1e-13)
    # Outputs alone, and classes with their counts, are the same question.
    for targets, options in [
        (LABELS, {"logits": best.logits[LABELS]}),
        (CLASSES, {"logits": best.logits, "counts": [10] * 4}),
        (np.eye(4), {"logits": best.logits, "counts": [10] * 4}),
    ]:
        other = theory.optimality_gap("cross_entropy", targets, **options, **DECAY)
        np.testing.assert_allclose(other[:3], gap[:3], atol=1e-15)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("decay", [1e-4, 5e-3, 0.078, 0.2])
def test_zero_at_balanced_cross_entropy(smoothing, decay):
    options = {"weight_decay": 2 * decay, "feature_decay": decay / 2}
    options["label_smoothing"] = smoothing
    best = theory.balanced_optimum("cross_entropy", 4, 10, **options)
    gap = gap_of("cross_entropy", best, [10] * 4, **options)
    np.testing.assert_allclose(gap.primal, best.objective, rtol=1e-14)
    assert abs(gap.gap) < 1e-14
    assert (gap.gradient_ratio < 1 - 1e-9) == best.collapsed.all()


@pytest.mark.parametrize("bias", ["none", "free"])
@pytest.mark.parametrize("decay", [5e-3, 0.07])
def test_zero_at_squared_error_whatever_the_imbalance(bias, decay):
    options = {"weight_decay": decay, "feature_decay": decay}
    best = theory.squared_error_optimum(COUNTS, **options, bias=bias)
    assert best.collapsed.any() == (decay > 0.06)
    bias_decay = 0.0 if bias == "free" else None
    gap = gap_of("squared_error", best, COUNTS, bias_decay=bias_decay, **options)
    np.testing.assert_allclose(gap.primal, best.objective, rtol=1e-14)
    assert abs(gap.gap) < 1e-14


@pytest.mark.parametrize("bias_decay", [None, 0.0, 0.02])
def test_proves_what_the_solver_finds_under_imbalance(bias_decay):
    found = theory.unconstrained_features(
        "cross_entropy",
        CLASSES,
        counts=COUNTS,
        bias_decay=bias_decay,
        key=jax.random.key(0),
        **DECAY,
    )
    gap = gap_of("cross_entropy", found, COUNTS, bias_decay=bias_decay, **DECAY)
    np.testing.assert_allclose(gap.primal, found.objective, rtol=1e-14)
    assert abs(gap.gap) < 1e-13
    # Anywhere else, the bound stays below the optimum and the objective above.
    rng = np.random.default_rng(0)
    for size in (0.01, 0.3, 3.0):
        moved = [a + size * rng.normal(size=a.shape) for a in found.layers[:1]]
        bias = None if found.bias is None else found.bias + size * rng.normal(size=4)
        other = found._replace(layers=tuple(moved), bias=bias)
        off = gap_of("cross_entropy", other, COUNTS, bias_decay=bias_decay, **DECAY)
        assert off.primal > found.objective
        assert off.dual < found.objective + 1e-13
    np.testing.assert_allclose(off.dual, off.primal - off.gap)


def test_against_entropies_over_all_scales():
    rng = np.random.default_rng(1)
    z = rng.normal(size=(40, 4)) + 3 * np.eye(4)[LABELS]
    found = theory.optimality_gap("cross_entropy", LABELS, logits=z, **DECAY)
    p, y = softmax(z, axis=1), np.eye(4)[LABELS]
    largest = 5e-3 / np.linalg.norm((p - y) / 40, 2)
    np.testing.assert_allclose(found.gradient_ratio, 1 / largest, rtol=1e-12)
    best = -np.inf
    for s in np.linspace(0, largest, 2001):
        v = (1 - s) * y + s * p
        if v.min() >= 0:
            best = max(best, -np.sum(xlogy(v, v)) / 40)
    assert best <= found.dual + 1e-12
    np.testing.assert_allclose(found.dual, best, rtol=1e-3)
    log_p = np.log(p[np.arange(40), LABELS])
    primal = -log_p.mean() + 5e-3 * np.linalg.norm(z, "nuc")
    np.testing.assert_allclose(found.primal, primal, rtol=1e-13)


def test_any_multiple_of_the_frame_proves_the_optimum():
    best = theory.balanced_optimum("cross_entropy", 4, 10, **DECAY)
    for factor in (0.2, 0.9, 1.1, 5.0):
        gap = theory.optimality_gap(
            "cross_entropy", LABELS, logits=factor * best.logits[LABELS], **DECAY
        )
        np.testing.assert_allclose(gap.dual, best.objective, rtol=1e-12)
        assert gap.gap > 1e-3
        assert (gap.gradient_ratio > 1) == (factor < 1)


def test_a_loss_of_ones_own_through_its_conjugate():
    own = lambda z, y: jnp.sum(jnp.log(jnp.cosh(z - y)), axis=1)

    def conjugate(duals, y):  # of log cosh: artanh and entropy of (1 +- u) / 2
        up, down = (1 + duals) / 2, (1 - duals) / 2
        with np.errstate(invalid="ignore", divide="ignore"):
            value = up * np.log(up) + down * np.log(down) + np.log(2) + duals * y
        return np.where(np.isnan(value), np.inf, value).sum(1)

    targets = np.random.default_rng(2).normal(size=(6, 3))
    found = theory.unconstrained_features(own, targets, key=jax.random.key(1), **DECAY)
    gap = theory.optimality_gap(
        own,
        targets,
        classifier=(found.layers[0], None),
        features=found.features,
        conjugate=conjugate,
        **DECAY,
    )
    assert abs(gap.gap) < 1e-14
    off = theory.optimality_gap(
        own, targets, logits=3 * found.outputs, conjugate=conjugate, **DECAY
    )
    assert off.dual < found.objective < off.primal


def test_a_free_bias_that_falls_for_ever():
    # A class without examples: no bias is the best one, but the bound is near.
    options = {"num_outputs": 3, "bias_decay": 0.0, "max_evaluations": 300}
    found = theory.unconstrained_features(
        "cross_entropy", [0, 1], key=jax.random.key(0), **options, **DECAY
    )
    gap = gap_of("cross_entropy", found, [1, 1], bias_decay=0.0, **DECAY)
    assert -1e-9 < gap.gap < 1e-6
    # A loss that no bias can hold: there is no bound, and it says so.
    falls = lambda z, y: z[:, 0]
    conjugate = lambda u, y: np.where(np.abs(u - np.eye(3)[0]).max(1) > 0, np.inf, 0)
    gap = gap_of(falls, found, [1, 1], bias_decay=0.0, conjugate=conjugate, **DECAY)
    assert gap.dual == -np.inf
    assert gap.gap == np.inf


@pytest.mark.usefixtures("user_land")
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"classifier": (np.eye(3), None)}, "`logits` must be given alone"),
        ({"logits": None}, r"`classifier` must be a pair `\(weight, bias\)`"),
        ({"logits": np.zeros((2, 3))}, "as many examples"),
        ({"logits": np.zeros((3, 2))}, r"`targets` must lie in \[0, 2\)"),
        ({"logits": np.zeros((3, 2)), "targets": np.eye(3)}, r"shape \[n, 2\]"),
        ({"conjugate": lambda u, y: 0}, "`conjugate` must be None"),
        ({"logits": np.full((3, 3), np.nan)}, "`logits` must be finite"),
        ({"targets": np.ones(3)}, r"`targets` must be integers \[n\]"),
        ({"loss": lambda z, y: 0}, "`conjugate` must be given"),
        ({"loss": "focal"}, "`loss` must be"),
        (
            {"logits": None, "classifier": (np.eye(3), np.zeros(3))},
            r"`features` \[n, d\]",
        ),
        (
            {
                "logits": None,
                "classifier": (np.eye(3), np.zeros(3)),
                "features": np.eye(3),
            },
            "`bias_decay` must be given with a bias",
        ),
        (
            {
                "logits": None,
                "classifier": (np.eye(3), np.zeros(2)),
                "features": np.eye(3),
                "bias_decay": 0.0,
            },
            r"`classifier\[1\]` \(the bias\) must be None or have shape",
        ),
        (
            {"logits": None, "classifier": (np.eye(2), None), "features": np.eye(3)},
            r"`classifier\[0\]` must have shape",
        ),
    ],
)
def test_bad_input_is_named(change, match):
    options = {"loss": "cross_entropy", "targets": [0, 1, 2], "logits": np.eye(3)}
    options |= DECAY | change
    with pytest.raises(ValueError, match=match):
        theory.optimality_gap(options.pop("loss"), options.pop("targets"), **options)
