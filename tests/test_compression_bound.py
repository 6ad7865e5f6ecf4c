"""Certificates of files: what they are made of, that they hold, what each term pays."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtheory import bounds, compression
from jaxtheory.bounds._compression import code_complexity, occam

DELTA = 0.05
TRUTH = 0.5
REPETITIONS = 1000


def best_of(num_predictors, num_examples, rng):
    """Errors of the best of so many predictors of coin flips, drawn exactly.

    The smallest of N binomial numbers is at least k with probability P(k or more)^N.
    """
    from scipy.stats import binom

    k = np.arange(num_examples + 1)
    # log P(min >= k); log1p keeps the far tail, where N is large.
    at_least = num_predictors * np.log1p(-binom.cdf(k - 1, num_examples, 0.5))
    drawn = np.log(rng.random(REPETITIONS))
    return np.sum(drawn[:, None] < at_least[None, 1:], axis=1)


def failure_rate(errors, num_examples, complexity, delta=DELTA):
    risks = errors / num_examples
    return np.mean(occam(risks, complexity, num_examples, delta) < TRUTH)


def test_probabilities_of_all_files_add_up_to_less_than_one():
    # All 256^b files of b bytes, b = 1, 2, ...: of bits, from length 2 on.
    bits = np.arange(2.0, 10_000)
    assert np.sum(np.exp(np.log(2) * bits - code_complexity(bits))) < 0.645
    assert float(code_complexity(8)) == pytest.approx(math.log(2) * (8 + 2 * 3))


@pytest.mark.parametrize("num_bytes", [1, 2, 3])
def test_the_best_file_of_a_length_is_covered(num_bytes):
    num_examples, rng = 24, np.random.default_rng(num_bytes)
    errors = best_of(256**num_bytes, num_examples, rng)
    complexity = code_complexity(8 * num_bytes)
    assert failure_rate(errors, num_examples, complexity) <= DELTA
    # Length not paid for: the same network as if it had been fixed before.
    assert failure_rate(errors, num_examples, 0.0) > 4 * DELTA


def test_the_best_length_is_covered():
    # An adversary takes the file whose bound is smallest among those of 1 to 4 bytes.
    num_examples, rng, bytes_ = 40, np.random.default_rng(5), np.arange(1, 5)
    errors = np.stack([best_of(256**b, num_examples, rng) for b in bytes_])
    complexity = code_complexity(8 * bytes_)[:, None]
    values = occam(errors / num_examples, complexity, num_examples, DELTA)
    assert np.mean(np.min(values, axis=0) < TRUTH) <= DELTA


def test_a_seed_beside_the_file_must_be_paid():
    # One byte in the file, and the best of 2^32 seeds that are not in it.
    num_examples, rng = 40, np.random.default_rng(6)
    errors = best_of(2.0**40, num_examples, rng)
    assert failure_rate(errors, num_examples, code_complexity(40)) <= DELTA
    assert failure_rate(errors, num_examples, code_complexity(8)) > 4 * DELTA
    # As decoders they are paid too.
    paid = code_complexity(8) + 32 * math.log(2)
    assert failure_rate(errors, num_examples, paid) <= DELTA


def test_confidence_must_be_paid():
    # A fixed predictor: nothing was chosen.
    num_examples, rng = 8, np.random.default_rng(7)
    errors = rng.binomial(num_examples, TRUTH, 4 * REPETITIONS)
    assert failure_rate(errors, num_examples, 0.0) <= DELTA
    # delta = 1 is how the formula reads without 1/delta.
    assert failure_rate(errors, num_examples, 0.0, delta=1.0) > 4 * DELTA


def apply_fn(params, x):
    score = x @ params["w"]
    return jnp.stack([-score, score], axis=-1)


def init_fn(key):
    return {"w": jax.random.normal(key, (6,))}


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    """A file, what reads it, and examples that its network gets wrong now and then."""
    path = tmp_path_factory.mktemp("files") / "network"
    subspace = compression.random_subspace(init_fn, dim=3, seed=1)
    quantised = compression.quantise(np.float32([1.0, -1.0, 1.0]), num_levels=2)
    compression.save_compressed(path, quantised, subspace=subspace)
    decode = functools.partial(compression.load_compressed, init_fn=init_fn)
    x = np.random.default_rng(0).normal(size=(301, 6)).astype(np.float32)
    y = (x @ np.asarray(decode(path)["w"]) > 0).astype(int)
    y[::20] = 1 - y[::20]
    return decode, path, x, y


def test_a_certificate_is_made_of_the_file_and_the_errors(problem):
    decode, path, *_ = problem
    bound = bounds.compression(apply_fn, *problem, delta=DELTA)
    num_bits, num_errors = 8 * len(path.read_bytes()), 16
    assert bound.certificate
    assert bound.empirical_risk == num_errors / 301
    price = math.log(2) * (num_bits + 2 * math.log2(num_bits))
    assert bound.complexity == pytest.approx(price)
    budget = (price + math.log(1 / DELTA)) / 301
    q = bound.value
    r = bound.empirical_risk
    kl = r * math.log(r / q) + (1 - r) * math.log((1 - r) / (1 - q))
    assert kl == pytest.approx(budget, rel=1e-9)
    said = " ".join(bound.assumptions)
    assert f"{num_bits} bits" in said
    assert "errs on 16 of 301" in said
    assert "setting: the model and what decodes the file were fixed" in said
    # In batches that do not divide the examples, the same.
    batched = bounds.compression(apply_fn, *problem, delta=DELTA, batch_size=50)
    assert batched == bound
    assert decode(path)["w"].shape == (6,)


def test_forms_agree_with_pac_bayes_and_are_larger(problem):
    bound = bounds.compression(apply_fn, *problem, delta=DELTA, num_decoders=10)
    assert bound.complexity == pytest.approx(
        bounds.compression(apply_fn, *problem, delta=DELTA).complexity + math.log(10)
    )
    for form in ("kl", "catoni"):
        other = bounds.compression(
            apply_fn, *problem, delta=DELTA, num_decoders=10, form=form
        )
        expected = bounds.pac_bayes(
            bound.empirical_risk,
            bound.complexity,
            num_examples=301,
            delta=DELTA,
            form=form,
        )
        assert other.value == expected.value > bound.value
        assert other.certificate


def test_a_start_that_saw_the_examples_is_no_certificate(problem):
    bound = bounds.compression(apply_fn, *problem, delta=DELTA, decoder_seen_data=True)
    assert not bound.certificate
    assert "violated: the model and what decodes" in " ".join(bound.assumptions)


def test_outputs_that_are_not_numbers_are_errors(problem):
    decode, path, x, y = problem
    broken = lambda path: jax.tree.map(lambda a: a * jnp.nan, decode(path))
    bound = bounds.compression(apply_fn, broken, path, x, y, delta=DELTA)
    assert (bound.empirical_risk, bound.value, bound.vacuous) == (1.0, 1.0, True)


def test_bad_input(problem, tmp_path, user_land):
    decode, path, x, y = problem
    compute = functools.partial(bounds.compression, apply_fn)
    with pytest.raises(ValueError, match="`delta` must be strictly between 0 and 1"):
        compute(*problem, delta=0.0)
    with pytest.raises(ValueError, match="`decode` must be a function"):
        compute(None, path, x, y, delta=DELTA)
    with pytest.raises(ValueError, match="`form` must be one of"):
        compute(*problem, delta=DELTA, form="best")
    with pytest.raises(ValueError, match="`num_decoders` must be an integer of at lea"):
        compute(*problem, delta=DELTA, num_decoders=0)
    with pytest.raises(
        ValueError, match="`x` must hold at least 2 examples, but holds 1"
    ):
        compute(decode, path, x[:1], y[:1], delta=DELTA)
    with pytest.raises(ValueError, match="`path` must be a file, but"):
        compute(decode, tmp_path / "none", x, y, delta=DELTA)
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="`path` must hold a byte"):
        compute(decode, tmp_path / "empty", x, y, delta=DELTA)
    with pytest.raises(ValueError, match=r"`decode\(path\)\['w'\]` must be floating"):
        compute(lambda path: {"w": jnp.arange(6)}, path, x, y, delta=DELTA)
    with pytest.raises(ValueError, match="`targets` must be integer class labels"):
        compute(decode, path, x, y.astype(np.float32), delta=DELTA)
    traced = jax.jit(lambda x: compute(decode, path, x, y, delta=DELTA).value)
    with pytest.raises(ValueError, match="`x` must be a concrete value"):
        traced(x)
