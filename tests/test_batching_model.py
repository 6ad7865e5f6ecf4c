"""The probe of models: what is wrong is found, what is right passes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from jaxtheory import models
from jaxtheory.batching import check_model
from jaxtheory.interop.flax import evaluate

pytestmark = pytest.mark.usefixtures("user_land")


def inputs(n=4):
    return jax.random.normal(jax.random.key(0), (n, 3))


def test_counts_what_a_network_has():
    network = models.MLP(widths=(5,), num_outputs=2)
    params = network.init(jax.random.key(1), inputs())
    found = check_model(network.apply, params, inputs())
    assert (found.num_parameters, found.num_outputs) == (3 * 5 + 5 + 5 * 2 + 2, 2)
    assert found.difference < 1e-6
    assert found.unused == ()


def test_equal_inputs_would_hide_what_one_does_to_another():
    mixed = lambda params, x: params["w"] * (x - x.mean(0, keepdims=True))
    with pytest.raises(ValueError, match="`x` must hold inputs that differ, but all 4"):
        check_model(mixed, {"w": jnp.ones(())}, jnp.ones((4, 3)))


def test_names_what_no_output_depends_on():
    def model(params, x):
        return nn.softmax(x @ params["used"]) + 0 * jnp.sum(params["times zero"])

    params = {"used": jnp.ones((3, 2)), "times zero": jnp.ones(2), "left": jnp.ones(2)}
    assert check_model(model, params, inputs()).unused == ("['left']", "['times zero']")


def test_batch_statistics_mix_examples_and_running_ones_do_not():
    network = models.MLP(widths=(5,), num_outputs=2, batch_norm=True)
    variables = network.init(jax.random.key(1), inputs())
    rest = {"batch_stats": variables["batch_stats"]}

    def training(params, x):
        both = {"params": params, **rest}
        return network.apply(both, x, train=True, mutable=["batch_stats"])[0]

    with pytest.raises(ValueError, match=r"examples independently.*BatchNorm"):
        check_model(training, variables["params"], inputs())
    apply_fn, params = evaluate(network, variables)
    assert check_model(apply_fn, params, inputs()).difference < 1e-6


def test_dropout_that_draws_anew_is_found():
    draws = iter(range(100))

    def model(params, x):
        key = jax.random.key(next(draws))
        return x @ params * jax.random.bernoulli(key, 0.5, (len(x), 1))

    with pytest.raises(ValueError, match=r"deterministic.*dropout"):
        check_model(model, jnp.ones((3, 2)), inputs())


WRONG = {
    "one example": (lambda p, x: x @ p, inputs(1), r"`x` must hold at least two"),
    "integers": (lambda p, x: (x @ p).astype(int), inputs(), r"but returned dtype"),
    "pytree": (lambda p, x: (x @ p, x), inputs(), r"but returned a pytree"),
    "pooled": (lambda p, x: (x @ p).sum(axis=0), inputs(), r"returned shape \(2,\)"),
    "not finite": (
        lambda p, x: jnp.log(x - 100) @ p,
        inputs(),
        r"finite outputs, but 8 of 8 are not",
    ),
    "no gradient": (
        lambda p, x: x[:, :2] * jnp.sqrt(jnp.sum((p - 1) ** 2)),
        inputs(),
        r"differentiable .* `params` has 6 entries",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_models(case):
    model, x, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        check_model(model, jnp.ones((3, 2)), x)
