"""SGD on linear regression with fresh Gaussian batches: tails that theory knows."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxtheory import dynamics
from jaxtheory.dynamics import noise, tails


class Tail(NamedTuple):
    """The tail of one stationary law, predicted and measured.

    Attributes:
        dimension: ``d``.
        batch_size: ``b``.
        learning_rate: ``eta``.
        theory: Kesten's index; NaN where there is no stationary law.
        lyapunov: Mean growth of ``log |x|`` a step by theory.
        growth: Measured, over the second half of the steps that were finite.
        hill: Index at each number of tail points; NaN where there is no law.
        hill_error: Its standard errors.
        log_moment: Index by log-moments.
        log_moment_error: Its standard error.
    """

    dimension: int
    batch_size: int
    learning_rate: float
    theory: float
    lyapunov: float
    growth: float
    hill: np.ndarray
    hill_error: np.ndarray
    log_moment: float
    log_moment_error: float


class Variance(NamedTuple):
    """The stationary variance of an entry at one learning rate.

    Attributes:
        learning_rate: ``eta``.
        formula: ``eta / (b (2 - eta (b + d + 1) / b))``.
        solved: By `noise.stationary_covariance`.
        measured: Mean square over chains, entries, and the second half of records.
        error: Its standard error over chains.
        tail_index: Kesten's; below 4 `error` is itself an estimate without variance.
    """

    learning_rate: float
    formula: float
    solved: float
    measured: float
    error: float
    tail_index: float


def critical_rate(dimension: int, batch_size: int) -> float:
    """The learning rate at which the tail index is 2."""
    return 2 * batch_size / (dimension + batch_size + 1)


@functools.cache
def fresh_regression(batch_size: int) -> Any:
    """The objective of many chains ``[c, d]``, each on a batch of its own at each step.

    Inputs are ``N(0, I)`` and targets ``N(0, 1)``, so that the solution is 0; the loss
    is ``1/2`` squared error, mean over the batch and summed over chains.
    """

    def objective(chains, model_state, batch, key):
        del batch  # there are no data
        inputs_key, targets_key = jax.random.split(key)
        count, dimension = chains.shape
        x = jax.random.normal(inputs_key, (count, batch_size, dimension))
        y = jax.random.normal(targets_key, (count, batch_size))
        outputs = jnp.sum(x * chains[:, None, :], axis=-1)
        return 0.5 * jnp.sum((outputs - y) ** 2) / batch_size, model_state

    return objective


@functools.cache
def _optimizer():
    """SGD whose rate is data: one program for all rates."""
    return optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)


def mean_log_size(state: dynamics.TrainState) -> Any:
    """Mean over chains of the logarithm of the distance from the solution."""
    return jnp.mean(jnp.log(jnp.linalg.norm(state.params, axis=-1)))


def mean_squares(state: dynamics.TrainState) -> Any:
    """Mean square of an entry of each chain."""
    return jnp.mean(state.params**2, axis=-1)


def simulate(
    rates: Sequence[float],
    dimension: int,
    batch_size: int,
    *,
    num_chains: int,
    num_steps: int,
    measured: Any = mean_log_size,
    key: Any,
) -> dynamics.History:
    """Run chains from the solution at every learning rate; one run a rate."""
    optimizer, num = _optimizer(), len(rates)
    states = dynamics.init_population(
        optimizer,
        jnp.zeros((num, num_chains, dimension)),
        hyperparams={"learning_rate": np.asarray(rates, np.float32)},
    )
    return dynamics.train_population(
        fresh_regression(batch_size),
        states,
        optimizer,
        jnp.zeros(1),
        num_steps=num_steps,
        keys=jax.random.split(key, num),
        record={"measured": measured},
        record_every=num_steps // 20,
        progress=False,
    )


def measure(
    rates: Sequence[float],
    dimension: int,
    batch_size: int,
    *,
    num_tails: Sequence[int],
    num_chains: int,
    num_steps: int,
    key: Any,
) -> tuple[list[Tail], np.ndarray]:
    """Predict and measure the tail at every learning rate.

    Returns:
        One a rate, and the last iterates ``[rates, c, d]``.
    """
    sizes = {"dimension": dimension, "batch_size": batch_size}
    run_key, measure_key = jax.random.split(key)
    lengths = {"num_chains": num_chains, "num_steps": num_steps}
    history = simulate(rates, **sizes, **lengths, key=run_key)
    found = []
    for i, rate in enumerate(rates):
        theory = tails.linear_regression_tail_index(rate, **sizes)
        last = history.state.params[i]
        nothing = np.full(len(num_tails), np.nan)
        hill, hill_error, log_moment, log_error = nothing, nothing, np.nan, np.nan
        if theory.stationary:
            all_hill = [tails.hill(last, num_tail=k, centre="none") for k in num_tails]
            hill = np.array([float(one.value) for one in all_hill])
            hill_error = np.array([float(one.standard_error) for one in all_hill])
            moment = tails.log_moment(last, key=jax.random.fold_in(measure_key, i))
            log_moment, log_error = float(moment.value), float(moment.standard_error)
        found.append(
            Tail(
                dimension,
                batch_size,
                rate,
                np.asarray(theory.value).item(),
                np.asarray(theory.lyapunov_exponent).item(),
                _growth(history, i),
                hill,
                hill_error,
                log_moment,
                log_error,
            )
        )
    return found, np.asarray(history.state.params)


def _growth(history, run):
    """Growth of the mean logarithm a step, over the second half before divergence."""
    steps, logs = np.asarray(history.steps), history.records["measured"][:, run]
    end = history.diverged_at[run]
    finite = np.flatnonzero((steps < end) | (end < 0))
    first, last = finite[len(finite) // 2], finite[-1]
    if first == last:
        return np.nan
    return float((logs[last] - logs[first]) / (steps[last] - steps[first]))


def stationary_variance(
    rates: Sequence[float],
    dimension: int,
    batch_size: int,
    *,
    num_chains: int,
    num_steps: int,
    key: Any,
) -> list[Variance]:
    """The variance of an entry by formula, by the solver, and of chains."""
    d, b, identity = dimension, batch_size, np.eye(dimension)
    lengths = {"num_chains": num_chains, "num_steps": num_steps}
    history = simulate(rates, d, b, **lengths, measured=mean_squares, key=key)
    # Of each chain the mean over records of the second half.
    late = history.records["measured"][len(history.steps) // 2 :]
    squares = np.mean(late, axis=0, dtype=float)
    found = []
    for rate, values in zip(rates, squares, strict=True):
        solved = noise.stationary_covariance(
            identity,
            identity,
            learning_rate=rate,
            batch_size=b,
            # E[a a^T C a a^T] of a standard normal input.
            second_moment=lambda c: c + c.T + np.trace(c) * identity,
        )
        index = tails.linear_regression_tail_index(rate, dimension=d, batch_size=b)
        found.append(
            Variance(
                rate,
                rate / (b * (2 - rate * (b + d + 1) / b)),
                float(np.trace(solved.covariance)) / d,
                float(np.mean(values)),
                float(np.std(values, ddof=1) / len(values) ** 0.5),
                np.asarray(index.value).item(),
            )
        )
    return found
