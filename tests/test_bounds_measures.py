"""The bundle of measures against dense matrices, loops, and the functions it shares."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from oracles import dense_ggn, dense_hessian

from jaxtheory import bounds, collapse, curvature, dynamics, kernels, models

LOSS = optax.softmax_cross_entropy_with_integer_labels
MODEL: Any = models.MLP((24, 6), num_outputs=3)
N, D, K = 30, 5, 3
RANDOM = np.random.default_rng(0)
X = jnp.asarray(RANDOM.standard_normal((N, D)), jnp.float32)
Y = jnp.asarray(RANDOM.permutation(np.arange(N) % K), jnp.int32)
STEPS = 0.1 * RANDOM.standard_normal((59, 4)).astype(np.float32)
POINTS = np.concatenate([np.zeros((1, 4), np.float32), np.cumsum(STEPS, axis=0)])
LENGTHS = 2 * np.linalg.norm(STEPS, axis=1)
LAYERS = functools.partial(models.features, MODEL)
CLASSIFIER = functools.partial(models.classifier, MODEL)
PROBES = {
    "num_probes": 64,
    "num_iterations": 40,
    "num_draws": 16,
    "num_kernel_examples": 10,
}


def network(seed):
    return jax.jit(MODEL.init)(jax.random.key(seed), X[:1])


START, END = network(0), network(1)


def bundle(params, start, points, lengths):
    return bounds.measures(
        MODEL.apply,
        LOSS,
        params,
        X,
        Y,
        initial_params=start,
        key=jax.random.key(3),
        layers=LAYERS,
        classifier=CLASSIFIER,
        path=(points, lengths),
        **PROBES,
    )


TRACES = []


@jax.jit
@jax.vmap
def stacked(params, start, points, lengths):
    """All tests run this one program: it takes long to compile."""
    TRACES.append(1)
    return bundle(params, start, points, lengths)


def stack(*trees):
    return jax.tree.map(lambda *arrays: jnp.stack(arrays), *trees)


POPULATION = (
    stack(END, START),
    stack(START, END),
    jnp.stack([POINTS, 2 * POINTS]),
    jnp.stack([LENGTHS, LENGTHS]),
)


@pytest.fixture(scope="module")
def found():
    """Measures of the first of two networks."""
    return {name: float(values[0]) for name, values in stacked(*POPULATION).items()}


@pytest.fixture(scope="module")
def outputs():
    return np.asarray(jax.jit(MODEL.apply)(END, X), np.float64)


@pytest.fixture(scope="module")
def gradients():
    """Per-example gradients ``[n, p]`` and output Jacobians ``[n, k, p]``."""
    flat, unravel = ravel_pytree(END)

    def one(x, y):
        model = lambda w: MODEL.apply(unravel(w), x[None])[0]
        return jax.grad(lambda w: LOSS(model(w), y))(flat), jax.jacrev(model)(flat)

    return [np.asarray(a, np.float64) for a in jax.jit(jax.vmap(one))(X, Y)]


@pytest.fixture(scope="module")
def eigenvalues():
    hessian = dense_hessian(MODEL.apply, LOSS, END, X, Y)
    return np.linalg.eigvalsh(np.asarray(hessian, np.float64))


def test_there_are_more_than_forty_and_they_are_sorted(found):
    assert len(found) > 80
    assert list(found) == sorted(found)
    # Twenty-four eigenvalues of the first matrix are five: none has a power law.
    nan = {"power_law_exponent", "weighted_power_law_exponent"}
    infinite = {name for name, value in found.items() if not np.isfinite(value)}
    assert nan <= infinite
    assert found["num_nonfinite"] == len(infinite)


def test_outputs_and_losses(found, outputs):
    shifted = outputs - outputs.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    p, y = np.exp(log_p), np.asarray(Y)
    losses = -log_p[np.arange(N), y]
    rest = outputs.copy()
    rest[np.arange(N), y] = -np.inf
    margins = outputs[np.arange(N), y] - rest.max(axis=1)
    expected = {
        "loss": losses.mean(),
        "loss_deviation": losses.std(),
        "error": np.mean(margins < 0),
        "output_entropy": -(p * log_p).sum(axis=1).mean(),
        "confidence": p.max(axis=1).mean(),
        "output_norm": np.linalg.norm(outputs, axis=1).mean(),
        "margin_mean": margins.mean(),
        "margin_median": np.median(margins),
        "margin_deviation": margins.std(),
        "margin": np.quantile(margins, 0.1),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-5, err_msg=name)


def test_inputs(found, outputs):
    jacobians = jax.jit(jax.vmap(jax.jacrev(lambda x: MODEL.apply(END, x[None])[0])))
    slopes = np.asarray(jacobians(X), np.float64)
    y = np.asarray(Y)
    rest = outputs.copy()
    rest[np.arange(N), y] = -np.inf
    rival = rest.argmax(axis=1)
    rows = np.arange(N)
    lengths = np.linalg.norm(slopes[rows, y] - slopes[rows, rival], axis=1)
    ratios = (outputs[rows, y] - outputs[rows, rival]) / lengths
    np.testing.assert_allclose(found["input_margin"], np.median(ratios), rtol=1e-4)
    whole = np.mean(np.sum(slopes**2, axis=(1, 2)))
    np.testing.assert_allclose(found["geometric_complexity"], whole, rtol=1e-4)


def test_gradients_of_single_examples(found, gradients):
    each, jacobians = gradients
    mean = each.mean(axis=0)
    variance = np.sum((each - mean) ** 2) / (N - 1)
    units = each / np.linalg.norm(each, axis=1, keepdims=True)
    cosines = units @ units.T
    flat = np.asarray(ravel_pytree(END)[0], np.float64)
    ggn = np.asarray(dense_ggn(MODEL.apply, LOSS, END, X, Y), np.float64)
    expected = {
        "gradient_norm": np.linalg.norm(mean),
        "gradient_variance": variance,
        "gradient_noise_scale": variance / np.sum(mean**2),
        "gradient_coherence": (cosines.sum() - N) / (N * (N - 1)),
        "empirical_fisher_trace": np.mean(np.sum(each**2, axis=1)),
        "ggn_trace": np.trace(ggn),
        "fisher_rao": flat @ ggn @ flat,
        "ntk_trace": np.mean(np.sum(jacobians**2, axis=(1, 2))) / K,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-4, err_msg=name)


def test_hessian(found, eigenvalues):
    positive = np.maximum(eigenvalues, 0)
    np.testing.assert_allclose(found["sharpness"], eigenvalues[-1], rtol=1e-3)
    least = found["smallest_hessian_eigenvalue"]
    np.testing.assert_allclose(least, eigenvalues[0], rtol=1e-2)
    # Relative standard deviation of Hutchinson's: at most sqrt(2 / probes) = .18.
    spread = np.sqrt(2 * np.sum(eigenvalues**2) / PROBES["num_probes"])
    assert abs(found["hessian_trace"] - np.sum(eigenvalues)) < 4 * spread
    frobenius = np.sqrt(np.sum(eigenvalues**2))
    np.testing.assert_allclose(found["hessian_frobenius_norm"], frobenius, rtol=0.4)
    dimension = np.sum(positive / (positive + 1))
    np.testing.assert_allclose(found["effective_dimension"], dimension, rtol=0.4)


def test_flatness_by_the_separate_functions(found):
    problem = (MODEL.apply, LOSS, END, X, Y)
    for name in ("sam_sharpness", "asam_sharpness", "fisher_rao"):
        value = float(getattr(curvature.flatness, name)(*problem))
        np.testing.assert_allclose(found[name], value, rtol=1e-3, err_msg=name)
    # The same key in another split: equal to the errors of both.
    relative = curvature.flatness.relative_flatness(
        *problem, key=jax.random.key(9), num_samples=64
    )
    error = float(relative.standard_error) * np.sqrt(2)
    assert abs(found["relative_flatness"] - float(relative.value)) < 4 * error


def test_the_loss_rises_by_a_tenth_at_the_perturbations(found):
    to_draws = jax.random.split(jax.random.key(3), 4)[1]
    flat, unravel = ravel_pytree(END)
    draw = lambda i: jax.random.normal(jax.random.fold_in(to_draws, i), flat.shape)
    noise = jax.vmap(draw)(jnp.arange(PROBES["num_draws"]))
    loss = lambda w: jnp.mean(LOSS(MODEL.apply(unravel(w), X), Y))
    rise = jax.jit(
        lambda e: jnp.mean(jax.vmap(lambda d: loss(flat + d))(e)) - loss(flat)
    )
    np.testing.assert_allclose(rise(0.01 * noise), found["lpf_rise"], atol=1e-6)
    size = found["perturbation"]
    np.testing.assert_allclose(rise(size * noise), 0.1, rtol=0.01)
    size = found["relative_perturbation"]
    np.testing.assert_allclose(rise(size * jnp.abs(flat)[None] * noise), 0.1, rtol=0.01)
    moved = np.sum((flat - ravel_pytree(START)[0]) ** 2)
    divergence = moved / found["perturbation"] ** 2 / 2
    bound = np.sqrt((divergence + np.log(2 * N**0.5 / 0.05)) / (2 * N))
    np.testing.assert_allclose(found["pac_bayes_flatness"], bound, rtol=1e-4)


def test_tangent_kernel_on_evenly_spaced_examples(found, gradients):
    rows = np.arange(0, N, 3)
    jacobians = gradients[1][rows]
    kernel = np.einsum("ikp,jkp->ij", jacobians, jacobians) / K
    targets = np.eye(K)[np.asarray(Y)[rows]]
    values = np.linalg.eigvalsh(kernel)[::-1]
    shares = values / values.sum()
    inverse = np.linalg.inv(kernel)
    centred = targets - 1 / K
    energy = np.sum(centred * (inverse @ centred))
    slope = inverse @ centred
    validation = np.mean(slope**2, axis=0) / np.mean(np.diag(inverse)) ** 2
    aligned = kernels.centred_alignment(*map(jnp.asarray, (kernel, targets)))
    expected = {
        "ntk_effective_rank": np.exp(-np.sum(shares * np.log(shares))),
        "ntk_stable_rank": values.sum() / values[0],
        "ntk_condition_number": values[0] / values[-1],
        "ntk_complexity": np.sqrt(2 * energy / len(rows)),
        "ntk_cross_validation": np.mean(validation),
        "ntk_alignment": float(aligned),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=5e-3, err_msg=name)


def test_collapse_norms_and_spectra_by_the_separate_functions(found):
    features = LAYERS(END, X)
    last = features["layer_2"]
    nc = collapse.statistics(last, Y, classifier=CLASSIFIER(END))
    for name in ("nc1", "nc2", "nc3", "nc4", "cdnv", "directional_cdnv", "nc1_ratio"):
        value = float(getattr(nc, name))
        np.testing.assert_allclose(found[name], value, rtol=1e-4, err_msg=name)
    law = collapse.separation_law(features, Y)
    np.testing.assert_allclose(found["separation"], law.values[-1], rtol=1e-4)
    np.testing.assert_allclose(found["separation_ratio"], law.ratio, rtol=1e-4)
    centred = np.asarray(last) - np.asarray(last).mean(axis=0)
    values = np.linalg.svd(centred, compute_uv=False)
    shares = values / values.sum()
    shares = shares[shares > 1e-7]
    rank = np.exp(-np.sum(shares * np.log(shares)))
    np.testing.assert_allclose(found["feature_rank"], rank, rtol=1e-3)
    pairs = zip(*map(jax.tree.leaves, (END, START)), strict=True)
    kernels_of = [(now, then) for now, then in pairs if np.ndim(now) == 2]
    spectral = [np.linalg.norm(now, 2) for now, _ in kernels_of]
    largest = [np.sort(np.abs(np.ravel(now)))[::-1][:11] for now, _ in kernels_of]
    hill = lambda top: 1 / np.mean(np.log(top[:10] / top[10]))
    expected = {
        "param_norm": np.sum([np.sum(now**2) for now, _ in kernels_of]),
        "fro_dist": np.sum([np.sum((now - then) ** 2) for now, then in kernels_of]),
        "log_prod_of_spec": 2 * np.sum(np.log(spectral)),
        # Hill's index of the ten largest entries.
        "entry_tail_index": np.mean([hill(top) for top in largest]),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, err_msg=name)


def test_path_of_known_steps(found):
    length = LENGTHS.sum()
    tree = dynamics.topology.minimum_spanning_tree(
        np.linalg.norm(POINTS[:, None] - POINTS, axis=-1)
    )
    edges = np.asarray(tree.lengths, np.float64)
    # The exact lengths are twice those of the sketches.
    expected = {
        "path_length": length,
        "e_1": 2 * edges.sum(),
        "e_1_over_path_length": 2 * edges.sum() / length,
        "e_half": np.sqrt(2 * edges).sum(),
        "displacement_over_path_length": 2 * np.linalg.norm(POINTS[-1]) / length,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, err_msg=name)
    assert 1.2 < found["step_tail_index"] < 2.6  # Gaussian steps: 2


def test_another_population_is_no_other_program(found):
    turned = stacked(*jax.tree.map(lambda a: a[::-1], POPULATION))
    for name, value in found.items():
        np.testing.assert_allclose(turned[name][1], value, rtol=1e-4, err_msg=name)
    assert len(TRACES) == 1


def test_a_network_that_is_not_finite_is_seen_and_its_neighbour_unharmed(found):
    breaks = lambda a: a.at[(0,) * a.ndim].set(jnp.nan)
    broken, *others = POPULATION
    values = stacked(jax.tree.map(breaks, broken), *others)
    assert float(values["num_nonfinite"][0]) > 60
    assert np.isnan(values["loss"][0])
    assert np.isnan(values["relative_perturbation"][0])
    assert np.isnan(values["marchenko_pastur_distance"][0])
    np.testing.assert_allclose(values["loss"][1], stacked(*POPULATION)["loss"][1])


@pytest.mark.usefixtures("user_land")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": None}, "`layers` must be given with `classifier`"),
        ({"path": (POINTS[:40], None)}, "`path` must be at least 41 points"),
        ({"path": (POINTS, LENGTHS[1:])}, "`path` must be at least 41 points"),
        ({"path": POINTS}, "`path` must be a pair"),
        ({"num_probes": 1}, "`num_probes`"),
        ({"num_kernel_examples": 3}, "`num_kernel_examples`"),
        ({"y": Y[:, None]}, "`y` must be a vector"),
        ({"y": Y + 1}, r"`y` must hold class indices in \[0, 3\)"),
        ({"x": X[:3], "y": Y[:3]}, "at least 4 examples"),
        ({"key": jnp.zeros(2, jnp.uint32)}, "`key`"),
        ({"initial_params": {"w": X}}, "`initial_params`"),
    ],
)
def test_bad_input_is_refused(change, message):
    given = {
        "params": END,
        "x": X,
        "y": Y,
        "initial_params": START,
        "key": jax.random.key(0),
        "layers": LAYERS,
        "classifier": CLASSIFIER,
    } | change
    with pytest.raises(ValueError, match=message):
        bounds.measures(MODEL.apply, LOSS, **given)
