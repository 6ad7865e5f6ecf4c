"""Spectra of weights and features: noise, planted spikes, heavy-tailed entries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtheory import linalg
from jaxtheory.dynamics import tails


def new_key(seed=0):
    return jax.random.key(seed)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_noise_has_no_outlier_at_the_level():
    # 200 matrices by NumPy's batched SVD; the variance is estimated in each.
    values = np.linalg.svd(normal(200, 60, 40), compute_uv=False) ** 2 / 60
    against = lambda e: tails.eigenvalues_against_marchenko_pastur(
        e, num_samples=60, dimension=40, level=0.1
    )
    got = jax.vmap(against)(values.astype(np.float32))
    rate = np.mean(got.p_value < 0.1)
    assert abs(rate - 0.1) < 4 * (0.1 * 0.9 / 200) ** 0.5
    assert np.all((got.num_outliers > 0) == (got.p_value < 0.1))
    assert np.mean(got.ks_distance) < 0.06
    assert abs(np.mean(got.variance) - 1) < 0.01


def test_a_planted_spike_is_one_outlier_at_its_place():
    x = normal(400, 100)
    x[:, 3] *= 3.0**0.5
    x += 5
    got = tails.spectrum_against_marchenko_pastur(x)
    assert int(got.num_outliers) == 1
    assert float(got.p_value) < 1e-3
    spike = linalg.spike_of_outlier(
        got.eigenvalues[0], ratio=got.ratio, variance=got.variance
    )
    # The deviation of the estimate is about sqrt(2 / n) (l + 1).
    assert abs(float(spike.spike) - 2) < 4 * 3 * (2 / 400) ** 0.5
    # Uncentred, the mean is an outlier too; below the threshold there is none.
    uncentred = tails.spectrum_against_marchenko_pastur(x, centre=False)
    assert int(uncentred.num_outliers) == 2
    x[:, 3] = (x[:, 3] - 5) / (3 / 1.3) ** 0.5
    assert int(tails.spectrum_against_marchenko_pastur(x).num_outliers) == 0


def test_features_against_numpy_and_their_kernel():
    x = normal(40, 90, seed=1)
    got = tails.spectrum_against_marchenko_pastur(x)
    centred = x.astype(np.float64) - x.mean(0, dtype=np.float64)
    want = np.linalg.eigvalsh(centred @ centred.T / 39)[::-1][:39]
    np.testing.assert_allclose(got.eigenvalues, want, rtol=1e-4)
    kernel = np.linalg.eigvalsh((x @ x.T / 90).astype(np.float64))
    mine = tails.eigenvalues_against_marchenko_pastur(
        kernel.astype(np.float32), num_samples=90, dimension=40
    )
    plain = tails.spectrum_against_marchenko_pastur(x.T, centre=False)
    np.testing.assert_allclose(mine.eigenvalues, plain.eigenvalues, rtol=1e-4)
    np.testing.assert_allclose(mine.p_value, plain.p_value, atol=1e-3)
    # X and its transpose tell the same, in other units.
    turned = tails.spectrum_against_marchenko_pastur(x, centre=False)
    np.testing.assert_allclose(turned.p_value, plain.p_value, atol=1e-3)
    np.testing.assert_allclose(turned.ks_distance, plain.ks_distance, atol=1e-4)
    assert plain.ks_distance < 0.08


@pytest.fixture(scope="module")
def spectra():
    rng = np.random.default_rng(2)
    spiked = normal(90, 45, seed=3)
    spiked += 12 * np.outer(np.ones(90) / 90**0.5, np.ones(45) / 45**0.5)
    heavy = rng.standard_t(1.5, size=(90, 45))
    params = {
        "spiked": jnp.asarray(spiked, jnp.float32),
        "wide": jnp.asarray(normal(45, 90, seed=4)),
        "heavy": jnp.asarray(heavy, jnp.float32),
        "conv": jnp.asarray(normal(3, 3, 10, 45, seed=5)),
        "head": jnp.asarray(normal(45, 10, seed=6)),
        "bias": jnp.ones(45),
        "scale": jnp.ones((1, 45)),
    }
    return params, tails.weight_spectra(params, key=new_key())


def test_which_parameters_are_matrices(spectra):
    params, found = spectra
    assert set(found) == {
        f"['{k}']" for k in ("spiked", "wide", "heavy", "conv", "head")
    }
    conv = np.asarray(params["conv"], np.float64).reshape(90, 45)
    want = np.linalg.svd(conv, compute_uv=False)
    got = found["['conv']"]
    np.testing.assert_allclose(got.noise.eigenvalues, want**2 / 90, rtol=1e-4)
    np.testing.assert_allclose(got.spectral_norm, want[0], rtol=1e-5)
    stable_rank = np.sum(want**2) / want[0] ** 2
    np.testing.assert_allclose(got.stable_rank, stable_rank, rtol=1e-5)
    assert float(got.noise.ratio) == 0.5


def test_what_weight_spectra_find(spectra):
    params, found = spectra
    for name in ("wide", "conv"):
        assert int(found[f"['{name}']"].noise.num_outliers) == 0
        assert not found[f"['{name}']"].heavy_entries
    spiked = found["['spiked']"]
    # A singular value of 12 among those of noise up to 90^.5 + 45^.5 = 16: a spike of
    # 144 / 90 above the threshold .5^.5.
    assert int(spiked.noise.num_outliers) == 1
    assert not spiked.heavy_entries
    assert float(spiked.shuffled_p_value) > 0.01
    np.testing.assert_allclose(
        spiked.power_law.value,
        tails.clauset(spiked.noise.eigenvalues, max_candidates=128).value,
        rtol=1e-4,
    )
    np.testing.assert_allclose(
        spiked.power_law.exponent, spiked.power_law.value + 1, rtol=1e-6
    )
    entries = np.sort(np.abs(np.asarray(params["spiked"]).ravel()))[::-1]
    want = 1 / np.mean(np.log(entries[:40] / entries[40]))
    np.testing.assert_allclose(spiked.entry_tail_index, want, rtol=1e-4)


def test_heavy_tailed_entries_are_not_called_training(spectra):
    heavy = spectra[1]["['heavy']"]
    # Outliers and a power law without any structure: the flag says where from.
    assert int(heavy.noise.num_outliers) > 3
    assert heavy.power_law.exponent < 3
    assert heavy.heavy_entries
    assert float(heavy.shuffled_p_value) < 1e-3
    assert abs(heavy.entry_tail_index - 1.5) < 4 * 1.5 / 40**0.5
    np.testing.assert_allclose(
        heavy.shuffled_exponent, heavy.power_law.exponent, rtol=0.4
    )


def test_few_eigenvalues_fit_no_power_law(spectra):
    head = spectra[1]["['head']"]
    assert head.too_few
    assert np.isnan(head.power_law.value)
    assert int(head.power_law.num_tail) == 0
    assert np.isfinite(head.noise.p_value)


def test_degenerate_matrices_are_flagged():
    rank_one = np.outer(normal(90), normal(45, seed=1)).astype(np.float32)
    broken = normal(90, 45)
    broken[0, 0] = np.nan
    params = {"low": rank_one, "zero": np.zeros((90, 45), "f4"), "nan": broken}
    found = tails.weight_spectra(params, key=new_key(1))
    for name in params:
        noise = found[f"['{name}']"].noise
        assert noise.degenerate
        assert np.isnan(noise.p_value)
        assert int(noise.num_outliers) == 0
    assert float(found["['low']"].stable_rank) == pytest.approx(1, abs=1e-4)
    assert int(found["['nan']"].noise.num_nonfinite) == 1
    assert np.isnan(found["['nan']"].power_law.value)


def test_eigenvalues_that_no_covariance_has_are_counted():
    # Those of a Hessian were cut at zero, and held against noise all the same.
    hold = lambda values: tails.eigenvalues_against_marchenko_pastur(
        values, num_samples=200, dimension=50
    )
    got = hold(np.linspace(-1, 5, 50, dtype="f4"))
    assert int(got.num_nonfinite) == np.sum(np.linspace(-1, 5, 50) < -0.005)
    assert np.all(np.isnan(got.eigenvalues))
    assert np.isnan(got.p_value)
    rounded = hold(np.linspace(-1e-6, 5, 50, dtype="f4"))
    assert int(rounded.num_nonfinite) == 0
    assert np.isfinite(rounded.p_value)


def test_new_parameters_of_the_same_shapes_are_no_new_trace():
    traces = []

    @jax.jit
    def exponent(params):
        traces.append(1)
        found = tails.weight_spectra(params, key=new_key())
        return found["['w']"].power_law.exponent

    first = exponent({"w": normal(90, 45)})
    second = exponent({"w": normal(90, 45, seed=1)})
    assert len(traces) == 1
    assert float(first) != float(second)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: tails.weight_spectra({}, key=new_key()), "at least one array"),
        (lambda: tails.weight_spectra({"b": np.ones(3)}, key=new_key()), "two axes"),
        (lambda: tails.weight_spectra({"b": np.ones((3, 3))}, key=0), "`key` must"),
        (
            lambda: tails.weight_spectra(
                {"b": np.ones((3, 3))}, key=new_key(), level=0.0
            ),
            "`level` must",
        ),
        (
            lambda: jax.jit(
                lambda p: tails.weight_spectra(
                    {"b": np.ones((3, 3))}, key=new_key(), level=p
                )
            )(0.1),
            "`level` must be a concrete",
        ),
        (
            lambda: tails.eigenvalues_against_marchenko_pastur(
                [1.0, 2.0], num_samples=9, dimension=2
            ),
            "`eigenvalues` must be an array of",
        ),
        (lambda: tails.spectrum_against_marchenko_pastur(np.ones(3)), "a matrix"),
        (
            lambda: tails.spectrum_against_marchenko_pastur(np.ones((3, 3), int)),
            "floating-point",
        ),
        (
            lambda: tails.eigenvalues_against_marchenko_pastur(
                np.ones(3), num_samples=9, dimension=4
            ),
            "at least 4",
        ),
    ],
)
def test_bad_input(user_land, call, match):
    with pytest.raises(ValueError, match=match):
        call()
