"""Certificates of networks: ``python -m experiments.pac_bayes --help``.

PAC-Bayes with backprop (Perez-Ortiz et al., arXiv:2007.12911) trains a Gaussian over
weights for its own bound. Its certificates are tight where the prior was trained on a
part of the data, and then most of the work is the prior's: beside each certificate
stand the bound that the prior earns by itself on the same examples (KL = 0), the
Clopper-Pearson bound of the prior's mean on them (a plain hold-out set), and the error
on test data that nothing here has seen. A prior that has seen no data shows what
PAC-Bayes does alone.
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments.folder import run_command
from experiments.pac import page
from jaxtheory import bounds, data, dynamics, models
from jaxtheory._types import Bound

# Draws by which a posterior is chosen; it is certified by others.
_FEW = 200


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run.

    Attributes:
        widths: Hidden layers of the network.
        num_train: Digits that a bound or its prior may use; the others are for tests.
        prior_fractions: Shares of them that the prior is trained on; 0 for a prior
            around the initial weights.
        prior_scales: Standard deviations of the prior, each of which trains a
            posterior; certificates pay for the choice among them.
        prior_steps: Steps of the prior's training.
        posterior_steps: Steps of the posterior's training.
        batch_size: Examples a step.
        num_samples: Draws of the weights for each certificate.
        delta: Probability that a bound may fail.
        num_seeds: Splits, at least 2.
        seed: Seed of everything.
        out: Folder for the numbers and the figure.
    """

    widths: tuple[int, ...] = (64,)
    num_train: int = 1400
    prior_fractions: tuple[float, ...] = (0.0, 0.3, 0.5, 0.7)
    prior_scales: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)
    prior_steps: int = 2000
    posterior_steps: int = 3000
    batch_size: int = 100
    num_samples: int = 5000
    delta: float = 0.05
    num_seeds: int = 5
    seed: int = 0
    out: Path = Path("runs/pac_bayes")


class Found(NamedTuple):
    """What was certified with priors of one kind, each ``[seeds]``.

    Attributes:
        bound: The smallest certificate of a posterior.
        risk: Its Gibbs error on the examples that count, mean over draws.
        kl: Its relative entropy, in nats.
        scale: The prior scale that it won with.
        forms: The same by each form of the inequality, ``[seeds, forms]``.
        prior: The bound that the prior earns, KL = 0.
        holdout: Clopper-Pearson bound of the prior's mean on the same examples; NaN for
            a prior that was not trained.
        test: Gibbs error of the posterior on test data.
        prior_test: Error of the prior's mean there.
        certificates: Whether each of the three is one.
    """

    bound: np.ndarray
    risk: np.ndarray
    kl: np.ndarray
    scale: np.ndarray
    forms: np.ndarray
    prior: np.ndarray
    holdout: np.ndarray
    test: np.ndarray
    prior_test: np.ndarray
    certificates: np.ndarray


class Result(NamedTuple):
    """What was measured, by the share of the data that the prior was trained on."""

    found: dict[str, Found]


def run(config: Config) -> Result:
    """Train priors and posteriors on every split, and certify them.

    Raises:
        ValueError: There are fewer than two seeds, or a fraction is not in [0, 1).
    """
    if config.num_seeds < 2:
        raise ValueError(
            "`num_seeds` must be at least 2, for standard errors, but was "
            f"{config.num_seeds}."
        )
    if not all(0 <= fraction <= 0.95 for fraction in config.prior_fractions):
        raise ValueError(
            "`prior_fractions` must be between 0 and .95, so that examples are left to "
            f"count, but were {config.prior_fractions}."
        )
    # One module: of two equal ones every program would be compiled twice.
    found, module = {}, models.MLP(config.widths, num_outputs=10)
    for fraction in config.prior_fractions:
        seeds = range(config.num_seeds)
        rows = [_one(config, module, fraction, seed) for seed in seeds]
        columns = [np.asarray(column) for column in zip(*rows, strict=True)]
        found[f"{fraction:g}"] = Found(*columns)
    return Result(found)


def _one(config, module, fraction, seed):
    """Everything about one split and one prior, the fields of `Found`."""
    key = jax.random.fold_in(jax.random.key(config.seed), seed)
    split, start, fit, tune, count = jax.random.split(key, 5)
    digits = data.digits(num_train=config.num_train, key=split)
    train, test = (digits.x_train, digits.y_train), (digits.x_test, digits.y_test)
    cut = round(fraction * config.num_train)
    seen, counting = [a[:cut] for a in train], [a[cut:] for a in train]
    prior = module.init(start, train[0][:1])
    if cut:
        prior = _fit(config, module, prior, tuple(seen), fit)
    posteriors = _posteriors(config, module, prior, train, len(counting[1]), tune)
    priors = [bounds.init_posterior(prior, scale=s) for s in config.prior_scales]
    posterior, scale, bound = _best(config, module, prior, posteriors, counting, count)
    _, _, alone = _best(config, module, prior, priors, counting, count)
    wrong = np.argmax(module.apply(prior, counting[0]), 1) != np.asarray(counting[1])
    held = bounds.holdout(int(wrong.sum()), len(wrong), delta=config.delta)
    fresh = _certify(
        config, module, prior, posterior, test, jax.random.fold_in(count, 2)
    )
    outputs = module.apply(prior, test[0])
    return (
        bound.value,
        bound.empirical_risk,
        bound.complexity,
        scale,
        page.by_form(config, bound, len(counting[1])),
        alone.value,
        held.value if cut else np.nan,
        fresh.empirical_risk,
        float(jnp.mean(jnp.argmax(outputs, 1) != test[1])),
        [bound.certificate, alone.certificate, held.certificate],
    )


def _fit(config, module, params, batch, key):
    """Plain training of the prior's centre on its part of the data."""
    optimizer = optax.adam(1e-3)
    loss = optax.softmax_cross_entropy_with_integer_labels
    return dynamics.train(
        dynamics.supervised(module.apply, loss),
        dynamics.init(optimizer, params),
        optimizer,
        batch,
        num_steps=config.prior_steps,
        batch_size=min(config.batch_size, len(batch[1])),
        key=key,
        progress=False,
    ).state.params


def _posteriors(config, module, prior, train, num_examples, key):
    """One trained for each scale of the prior, on all of the data."""
    optimizer = optax.adam(1e-3)

    def posterior(index, scale):
        objective = bounds.pac_bayes_objective(
            module.apply,
            prior_scale=scale,
            num_examples=num_examples,
            delta=config.delta,
        )
        start = bounds.init_posterior(prior, scale=scale)
        return dynamics.train(
            objective,
            dynamics.init(optimizer, start, model_state=prior),
            optimizer,
            train,
            num_steps=config.posterior_steps,
            batch_size=config.batch_size,
            key=jax.random.fold_in(key, index),
            progress=False,
        ).state.params

    return [posterior(*pair) for pair in enumerate(config.prior_scales)]


def _best(config, module, prior, posteriors, examples, key) -> tuple:
    """The best by a few draws, its scale, and its certificate by fresh ones."""
    few = dataclasses.replace(config, num_samples=_FEW)
    choose, certify = (jax.random.fold_in(key, index) for index in range(2))
    rough = [
        _certify(few, module, prior, one, examples, jax.random.clone(choose)).value
        for one in posteriors
    ]
    best = int(np.argmin(rough))
    bound = _certify(config, module, prior, posteriors[best], examples, certify)
    return posteriors[best], config.prior_scales[best], bound


def _certify(config, module, prior, posterior, examples, key) -> Bound:
    """The certificate of a posterior that may be chosen by the same examples."""
    return bounds.gaussian_pac_bayes(
        module.apply,
        posterior.params,
        prior,
        *examples,
        posterior_scales=1.0,
        posterior_spread=posterior.spread,
        prior_scales=config.prior_scales,
        num_samples=config.num_samples,
        delta=config.delta,
        key=key,
    )


def main() -> None:
    """Run the command line."""
    config = tyro.cli(Config, description=__doc__)
    run_command(config, run, page.report, page.draw)


if __name__ == "__main__":
    main()
