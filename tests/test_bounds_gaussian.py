import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from scipy.optimize import brentq
from scipy.special import rel_entr

from jaxtheory.bounds import (
    gaussian_pac_bayes,
    prior_bound,
    zero_one_error,
)

N, D, K = 72, 5, 3


def mlp(params, x):
    return jnp.tanh(x @ params["in"]) @ params["out"]


def make_problem():
    """Trained-looking and initial parameters of a tiny MLP, inputs, labels."""
    rng = np.random.default_rng(0)
    prior = {"in": rng.normal(size=(D, 4)), "out": rng.normal(size=(4, K))}
    params = {name: w + 0.3 * rng.normal(size=w.shape) for name, w in prior.items()}
    x = rng.normal(size=(N, D))
    y = np.argmax(np.tanh(x @ params["in"]) @ params["out"], axis=1)
    cast = lambda tree: jax.tree.map(jnp.asarray, tree)
    return cast(params), cast(prior), jnp.asarray(x), jnp.asarray(y)


def settings(**changes):
    """The keyword arguments that most tests share."""
    shared = dict(posterior_scales=(0.1, 0.3), num_samples=50, delta=0.05)
    return shared | dict(key=jax.random.key(0)) | changes


def oracle_value(bound, kl, *, m, num_posteriors, num_priors, delta):
    """The two steps by a root finder, from the reported mean risk."""

    def invert(risk, budget):
        excess = lambda q: rel_entr(risk, q) + rel_entr(1 - risk, 1 - q) - budget
        return brentq(excess, risk, 1 - 1e-15, xtol=1e-15)

    upper = invert(bound.empirical_risk, np.log(4 * num_posteriors / delta) / m)
    inside = kl + np.log(num_priors) + np.log(4 * np.sqrt(N) / delta)
    return invert(upper, inside / N)


def dense_kl(params, prior, s, t):
    """KL of the two Gaussians from the textbook formula, all in float64."""
    flat = lambda tree: np.concatenate([np.ravel(a) for a in jax.tree.leaves(tree)])
    gap = flat(params).astype(float) - flat(prior).astype(float)
    p = gap.size
    return 0.5 * (p * s**2 / t**2 + gap @ gap / t**2 - p + p * np.log(t**2 / s**2))


@pytest.mark.parametrize("double", [False, True])
def test_bound_of_a_network(double):
    with jax.enable_x64(double):
        params, prior, x, y = make_problem()
        m, s = 400, 0.25
        bound = gaussian_pac_bayes(
            mlp, params, prior, x, y, **settings(posterior_scales=s, num_samples=m)
        )
    risks = manual_risks(params, x, y, s, m)
    # Two independent means of m draws each: 4 standard errors of their difference.
    spread = 4 * np.std(risks) * np.sqrt(2 / m)
    assert 0 < spread < 0.05
    assert abs(bound.empirical_risk - np.mean(risks)) < spread
    grid = np.logspace(-4, 1, 1001)
    kl = min(dense_kl(params, prior, s, t) for t in grid)
    expected = oracle_value(
        bound, kl, m=m, num_posteriors=1, num_priors=1001, delta=0.05
    )
    assert bound.certificate
    assert abs(bound.complexity - (kl + np.log(1001))) < 1e-10 * kl
    assert abs(bound.value - expected) < 1e-12


def manual_risks(params, x, y, scale, num_samples):
    """Empirical risk of each of NumPy's own weight draws, in a loop."""
    rng = np.random.default_rng(7)
    host = {name: np.asarray(w, float) for name, w in params.items()}
    risks = []
    for _ in range(num_samples):
        noisy = {k: w + scale * rng.normal(size=w.shape) for k, w in host.items()}
        outputs = np.tanh(np.asarray(x, float) @ noisy["in"]) @ noisy["out"]
        risks.append(np.mean(np.argmax(outputs, axis=1) != np.asarray(y)))
    return risks


def test_grids_are_paid_for():
    params, prior, x, y = make_problem()
    priors = np.array([0.2, 0.4, 0.6, 0.8], np.float32)
    alone = [
        gaussian_pac_bayes(
            mlp,
            params,
            prior,
            x,
            y,
            prior_scales=priors,
            **settings(posterior_scales=s),
        )
        for s in (0.1, 0.3)
    ]
    both = gaussian_pac_bayes(
        mlp, params, prior, x, y, prior_scales=priors, **settings()
    )
    values = []
    for s, bound in zip((0.1, 0.3), alone, strict=True):
        s, t = np.float64(np.float32(s)), priors.astype(float)
        kl = min(dense_kl(params, prior, s, float(scale)) for scale in t)
        shared = dict(m=50, num_priors=4, delta=0.05)
        expected = oracle_value(bound, kl, num_posteriors=1, **shared)
        assert abs(bound.value - expected) < 1e-12
        values.append(oracle_value(bound, kl, num_posteriors=2, **shared))
    assert abs(both.value - min(values)) < 1e-12
    assert any("4 prior scales" in text for text in both.assumptions)
    assert any("2 posterior scales" in text for text in both.assumptions)


def test_the_prior_alone_is_the_same_bound_at_kl_zero():
    _, prior, x, y = make_problem()
    shared = settings()
    del shared["posterior_scales"]
    alone = prior_bound(mlp, prior, x, y, scales=0.3, **shared)
    same = gaussian_pac_bayes(
        mlp, prior, prior, x, y, posterior_scales=0.3, prior_scales=0.3, **shared
    )
    assert alone == same
    assert alone.complexity == 0.0
    grid = prior_bound(mlp, prior, x, y, scales=(0.3, 0.9), **shared)
    assert grid.complexity == np.log(2)
    expected = oracle_value(grid, 0.0, m=50, num_posteriors=2, num_priors=2, delta=0.05)
    assert abs(grid.value - expected) < 1e-12


@pytest.mark.parametrize("of", ["posterior", "prior"])
def test_the_examples_of_the_prior_are_left_out(of):
    """Wrong labels there do not matter; `n` is the number of the others."""
    params, prior, x, y = make_problem()

    def bound(x, y, **changes):
        shared = settings(**changes)
        scales = shared.pop("posterior_scales")
        if of == "prior":
            return prior_bound(mlp, prior, x, y, scales=scales, **shared)
        return gaussian_pac_bayes(
            mlp, params, prior, x, y, posterior_scales=scales, **shared
        )

    seen = 18
    split = bound(x, y.at[:seen].set(0), prior_fraction=seen / N)
    alone = bound(x[seen:], y[seen:])
    assert split.value == alone.value
    assert split.certificate
    (ledger,) = [text for text in split.assumptions if "the prior (centre" in text]
    assert ledger.endswith(
        "fixed before the last 54 examples were seen; the first 18 were not used for "
        "the bound"
    )


def test_a_prior_that_saw_the_data_certifies_nothing():
    params, prior, x, y = make_problem()
    honest = gaussian_pac_bayes(mlp, params, prior, x, y, **settings())
    seen = gaussian_pac_bayes(
        mlp, params, prior, x, y, prior_seen_data=True, **settings()
    )
    assert honest.certificate
    assert not seen.certificate
    assert seen.value == honest.value
    assert any(text.startswith("violated: the prior") for text in seen.assumptions)


def test_a_model_that_saw_the_data_certifies_nothing():
    """A look-up of the nearest stored example: no weights to pay for, no errors."""
    rng = np.random.default_rng(1)
    x, y = jnp.asarray(rng.normal(size=(N, D))), jnp.asarray(rng.integers(0, 2, N))

    def look_up(params, inputs):
        distances = jnp.sum((inputs[:, None] - x[None]) ** 2, axis=-1)
        return jax.nn.one_hot(y[jnp.argmin(distances, axis=1)], 2) + 0 * params

    prior = jnp.zeros(())
    bound = gaussian_pac_bayes(
        look_up, prior, prior, x, y, prior_seen_data=True, **settings()
    )
    # The labels are coins: the true risk is 1/2.
    assert bound.value < 0.5
    assert not bound.certificate
    (ledger,) = [text for text in bound.assumptions if text.startswith("violated")]
    assert "the model function (preprocessing, BatchNorm statistics)" in ledger


def test_chunks_and_shards_change_nothing(eight_devices):
    params, prior, x, y = make_problem()
    whole = gaussian_pac_bayes(mlp, params, prior, x, y, **settings())
    ragged = gaussian_pac_bayes(mlp, params, prior, x, y, batch_size=50, **settings())
    x, y = jax.device_put((x, y), NamedSharding(eight_devices, PartitionSpec("data")))
    sharded = gaussian_pac_bayes(mlp, params, prior, x, y, batch_size=4, **settings())
    assert ragged == whole
    assert sharded == whole


def test_traces_once():
    params, prior, x, y = make_problem()
    calls = []

    def counted(params, x):
        calls.append(None)
        return mlp(params, x)

    gaussian_pac_bayes(counted, params, prior, x, y, **settings())
    first = len(calls)
    other = jax.tree.map(lambda w: 2 * w, params)
    changes = dict(key=jax.random.key(5), posterior_scales=(0.2, 0.4), delta=0.1)
    gaussian_pac_bayes(counted, other, prior, x, y, **settings(**changes))
    assert len(calls) == first


def test_losses_are_clipped_and_nan_is_the_worst():
    params, prior, x, y = make_problem()
    losses = jnp.tile(jnp.array([-3.0, 0.25, 7.0, jnp.nan]), N // 4)

    def fixed(outputs, targets):
        return losses + 0 * outputs[:, 0]

    bound = gaussian_pac_bayes(mlp, params, prior, x, y, loss_fn=fixed, **settings())
    mean = (0 + 0.25 + 1 + 1) / 4
    # Not a count, so it is rounded up by the worst error of a float32 sum.
    assert mean < bound.empirical_risk <= mean * (1 + 2 * N * 2**-23)
    assert any("clipped" in text for text in bound.assumptions)


def test_an_output_that_is_not_finite_is_an_error():
    outputs = jnp.array([[jnp.nan, 0.0], [jnp.inf, 0.0], [1.0, 0.0]])
    assert zero_one_error(outputs, jnp.zeros(3, int)).tolist() == [1.0, 1.0, 0.0]


def without_leaf(tree):
    return {"in": tree["in"]}


def wrong_shape(tree):
    return tree | {"out": tree["out"].T}


def not_finite(tree):
    return tree | {"out": tree["out"].at[0, 0].set(jnp.nan)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_leaf, r"`prior_params\['out'\]` does not exist and `params\['out'\]`"),
        (wrong_shape, r"`prior_params\['out'\]` has shape \(3, 4\)"),
        (not_finite, r"`params\['out'\]` and `prior_params\['out'\]` must be finite"),
    ],
)
def test_prior_must_match_the_parameters(user_land, change, message):
    params, prior, x, y = make_problem()
    with pytest.raises(ValueError, match=message):
        gaussian_pac_bayes(mlp, params, change(prior), x, y, **settings())


def test_prior_must_use_the_same_containers(user_land):
    params, prior, x, y = make_problem()
    with pytest.raises(ValueError, match="must have the structure of `params`"):
        gaussian_pac_bayes(
            lambda p, x: x @ p[0], [params["in"]], (prior["in"],), x, y, **settings()
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            dict(posterior_scales=()),
            "`posterior_scales` must be a number or a non-empty",
        ),
        (dict(posterior_scales=(0.1, -0.1)), "`posterior_scales` must hold finite"),
        (dict(posterior_scales=0.0), "`posterior_scales` must hold finite"),
        (dict(posterior_scales=1e-60), "`posterior_scales` must hold finite"),
        (dict(prior_scales=()), "`prior_scales` must be a number or a non-empty"),
        (dict(prior_scales=(1.0, np.inf)), "`prior_scales` must hold finite"),
        (dict(prior_scales=[[1.0]]), "`prior_scales` must be a number or a non-empty"),
        (dict(num_samples=0), "`num_samples` must be an integer of at least 1"),
        (dict(num_samples=True), "`num_samples` must be an integer of at least 1"),
        (dict(loss_fn=lambda o, y: (o, y)), "`loss_fn` must return one .* a tuple"),
        (dict(num_samples=2.5), "`num_samples` must be an integer of at least 1"),
        (dict(delta=1.0), "`delta` must be strictly between 0 and 1"),
        (dict(batch_size=0), "`batch_size` must be None"),
        (dict(prior_fraction=1.0), r"`prior_fraction` must be in \[0, 1\), but was 1"),
        (dict(prior_fraction=0.99), "holds 72 and `prior_fraction` leaves 1"),
        (dict(loss_fn=lambda o, y: o), "`loss_fn` must return one loss per"),
    ],
)
def test_options_are_checked(user_land, changes, message):
    params, prior, x, y = make_problem()
    with pytest.raises(ValueError, match=message):
        gaussian_pac_bayes(mlp, params, prior, x, y, **settings(**changes))


def test_data_are_checked(user_land):
    params, prior, x, y = make_problem()
    call = lambda x, y, fn=mlp: gaussian_pac_bayes(
        fn, params, prior, x, y, **settings()
    )
    with pytest.raises(ValueError, match="`y` must have as many examples"):
        call(x, y[:-1])
    with pytest.raises(ValueError, match="`x` must hold at least 2 examples"):
        call(x[:1], y[:1])
    with pytest.raises(ValueError, match="`y` must hold class labels from 0 to 2"):
        call(x, y.at[3].set(3))
    with pytest.raises(ValueError, match="`y` must hold class labels from 0 to 2"):
        call(x, y.at[3].set(-1))
    with pytest.raises(ValueError, match="`targets` must be integer class labels"):
        call(x, jax.nn.one_hot(y, K))
    with pytest.raises(ValueError, match=r"`outputs` must have shape \[n, k\]"):
        call(x, y, lambda p, x: mlp(p, x)[:, :1])
    with pytest.raises(ValueError, match=r"`apply_fn` must return .*\(10, 3\)"):
        call(x, y, lambda p, x: mlp(p, x)[:10])
    with pytest.raises(ValueError, match=r"`apply_fn` must return one array"):
        call(x, y, lambda p, x: (mlp(p, x), x))
    integers = jax.tree.map(lambda w: w.astype(int), params)
    with pytest.raises(ValueError, match=r"`params\['in'\]` must be floating-point"):
        gaussian_pac_bayes(mlp, integers, prior, x, y, **settings())


def test_tracers_are_refused(user_land):
    params, prior, x, y = make_problem()
    value = lambda x: gaussian_pac_bayes(mlp, params, prior, x, y, **settings()).value
    with pytest.raises(ValueError, match="`x` must be a concrete value"):
        jax.jit(value)(x)
