"""Strict saddles against eigenvalues worked out by hand and a dense Hessian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtheory.collapse import theory

COUNTS = [20, 10, 5]
CLASSES = np.arange(3)
DECAY = {"weight_decay": 8e-3, "feature_decay": 3e-3}


def verdict(loss, point, **options):
    options = {"counts": COUNTS, "key": jax.random.key(0)} | DECAY | options
    return theory.strict_saddle(loss, CLASSES, point, **options)


def below(slope):
    """Smallest eigenvalue of [[lw, -slope], [-slope, lh]]."""
    return np.linalg.eigvalsh([[8e-3, -slope], [-slope, 3e-3]])[0]


@pytest.mark.parametrize("num_layers", [1, 2])
def test_the_origin_is_a_saddle_of_one_layer_and_a_minimum_of_two(num_layers):
    point = ((np.zeros((3, 3)),) * num_layers, np.zeros((3, 3)), None)
    found = verdict("squared_error", point)
    assert found.gradient_norm == 0
    if num_layers == 1:  # the largest class pulls hardest, with sqrt(n) / N
        assert found.verdict == "strict_saddle"
        np.testing.assert_allclose(found.value, below(20**0.5 / 35), rtol=1e-10)
    else:
        assert found.verdict == "minimum"
        np.testing.assert_allclose(found.value, 3e-3, rtol=1e-10)


def test_a_forgotten_class_is_a_saddle_and_the_optimum_is_not():
    best = theory.squared_error_optimum(COUNTS, **DECAY)
    found = verdict("squared_error", best[:3])
    assert found.verdict == "minimum"
    assert abs(found.value) < 1e-12
    keep = np.array([1.0, 1.0, 0.0])[:, None]
    point = ((best.layers[0] * keep,), best.features * keep, None)
    found = verdict("squared_error", point)
    assert found.verdict == "strict_saddle"
    assert found.gradient_norm < 1e-15
    np.testing.assert_allclose(found.value, below(5**0.5 / 35), rtol=1e-9)
    assert found.residual < 1e-9
    # Following the direction forgets no class.
    layers, features, _ = found.direction
    start = ((point[0][0] + 0.1 * layers[0],), point[1] + 0.1 * features, None)
    solved = theory.unconstrained_features(
        "squared_error", CLASSES, counts=COUNTS, start=start, **DECAY
    )
    np.testing.assert_allclose(solved.objective, best.objective, rtol=1e-13)


def test_against_a_dense_hessian_at_the_optimum_of_cross_entropy():
    found = theory.unconstrained_features(
        "cross_entropy",
        CLASSES,
        counts=COUNTS,
        bias_decay=0.01,
        num_features=4,
        key=jax.random.key(1),
        **DECAY,
    )
    assert verdict("cross_entropy", found[:3], bias_decay=0.01).verdict == "minimum"
    off = (found.layers, 0.1 * found.features, found.bias)
    measured = verdict("cross_entropy", off, bias_decay=0.01)
    assert measured.verdict == "not_critical"
    roots = np.sqrt(COUNTS)[:, None]

    def objective(flat):
        w, h = flat[:12].reshape(3, 4), flat[12:24].reshape(3, 4)
        z = h / roots @ w.T + flat[24:][None, :]
        losses = jax.nn.logsumexp(z, axis=1) - jnp.diag(z)
        value = jnp.sum(jnp.asarray(COUNTS) / 35 * losses)
        value += 4e-3 * jnp.sum(w**2) + 1.5e-3 * jnp.sum(h**2)
        return value + 5e-3 * jnp.sum(flat[24:] ** 2)

    parts = (off[0][0], roots * off[1], off[2])
    with jax.enable_x64(True):
        flat = jnp.asarray(np.concatenate([part.ravel() for part in parts]))
        dense = np.linalg.eigvalsh(jax.jit(jax.hessian(objective))(flat))
    np.testing.assert_allclose(measured.value, dense[0], rtol=1e-9)


@pytest.mark.usefixtures("user_land")
@pytest.mark.parametrize(
    ("point", "change", "match"),
    [
        (((), np.eye(3), None), {}, "`point` must be"),
        (np.eye(3)[:2], {}, "`point` must be"),
        ((np.eye(3), np.eye(3), None), {}, r"of one weight `\(\(weight,\), features"),
        ((np.eye(3), None), {}, r"`point` must be .* structure PyTreeDef\(\(\*, \*\)"),
        (((np.eye(2, 3),), np.eye(3), None), {}, r"`targets` must lie in \[0, 2\)"),
        (((np.eye(3, 2),), np.eye(3), None), {}, "must hold factors of shapes"),
        (((np.eye(3),), np.eye(3), None), {"key": 1}, "`key` must be one typed"),
        (((np.eye(3),), np.eye(3), None), {"tolerance": 0}, "`tolerance` must be"),
    ],
)
def test_bad_input_is_named(point, change, match):
    with pytest.raises(ValueError, match=match):
        verdict("cross_entropy", point, **change)
