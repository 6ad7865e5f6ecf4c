"""What the measures of the zoo tell of the gap, and where their variance comes from."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.zoo.design import KINDS
from jaxtheory import bounds
from jaxtheory.bounds import evaluate

# Of these a larger one is said to be better; of all others a smaller one.
LARGER_IS_BETTER = frozenset(
    {
        "confidence",
        "feature_alignment",
        "gradient_coherence",
        "input_margin",
        "margin",
        "margin_mean",
        "margin_median",
        "ntk_alignment",
        "perturbation",
        "relative_perturbation",
    }
)
GIVEN = "learning rate"
SOURCES = (
    "data",
    "architecture",
    "algorithm",
    "hyperparameters",
    "interactions",
    "seeds",
)


class Errors(NamedTuple):
    """Of each network ``[c, s]``, NaN where it is left out.

    Attributes:
        gap: Test less training error.
        test: Error on the test examples that are not for validation.
        validation: Error on those that are.
    """

    gap: np.ndarray
    test: np.ndarray
    validation: np.ndarray


class Choice(NamedTuple):
    """What it costs to choose a cell, on each data set ``[e]``.

    Attributes:
        data: Names of the data sets.
        regret: By measure, test error of the choice less the smallest.
        validation: Of the choice by validation error.
        random: Of a cell drawn at random.
    """

    data: tuple[str, ...]
    regret: dict[str, np.ndarray]
    validation: np.ndarray
    random: np.ndarray


class Ranking(NamedTuple):
    """All findings about the measures.

    Attributes:
        evaluation: The protocol, over the whole zoo.
        data: Names of the data sets.
        within: By measure, tau within each data set ``[e]``.
        within_ceiling: Tau between the gaps of two seeds, within each.
        within_band: What chance does to the best ``|tau|`` of all, on one data set.
        variance: By "gap" and measure, share of the variance by `SOURCES`, without what
            the noise of seeds puts there.
        gap_terms: Of the gap, each term and its corrected share, largest first.
        choice: Model selection.
    """

    evaluation: evaluate.Evaluation
    data: tuple[str, ...]
    within: dict[str, np.ndarray]
    within_ceiling: np.ndarray
    within_band: np.ndarray
    variance: dict[str, np.ndarray]
    gap_terms: list[tuple[str, float]]
    choice: Choice


def rank(
    measures: dict[str, np.ndarray],
    errors: Errors,
    factors: dict[str, np.ndarray],
    *,
    num_resamples: int,
    seed: int,
) -> Ranking:
    """Evaluate all measures.

    Args:
        measures: By name, ``[c, s]``; NaN where missing.
        errors: Of the same networks.
        factors: Hyperparameters by name, ``[c]``.
        num_resamples: Resamples and permutations.
        seed: Of those.
    """
    varying = {n: v for n, v in factors.items() if len(np.unique(v)) > 1}
    to_all, to_bands = jax.random.split(jax.random.key(seed))
    evaluation = evaluate.evaluate(
        measures,
        errors.gap,
        varying,
        given=(GIVEN,) if GIVEN in varying else (),
        num_resamples=num_resamples,
        key=to_all,
    )
    data = data_sets(factors)
    tau = lambda values, part: evaluate.kendall(values[part], errors.gap[part]).tau
    within = {
        name: np.array([tau(values, part) for part in data.values()])
        for name, values in measures.items()
    }
    bands = [
        evaluate.permutation_band(
            {name: values[part] for name, values in measures.items()},
            errors.gap[part],
            num_permutations=num_resamples,
            key=jax.random.fold_in(to_bands, place),
        ).band
        for place, part in enumerate(data.values())
    ]
    ceilings = [
        evaluate.noise_ceiling(errors.gap[p]).between_seeds for p in data.values()
    ]
    found = evaluate.variance_decomposition(errors.gap, varying)
    order = np.argsort(-np.nan_to_num(found.corrected))
    name = lambda term: " x ".join(term)
    return Ranking(
        evaluation,
        tuple(data),
        within,
        np.array(ceilings),
        np.array(bands),
        {n: by_source(v, varying) for n, v in {"gap": errors.gap, **measures}.items()},
        [(name(found.terms[i]), float(found.corrected[i])) for i in order],
        choose(measures, errors, data),
    )


def data_sets(factors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Cells ``[c]`` of bool of each task at each label noise."""
    pairs = [*zip(factors["task"], factors["label noise"], strict=True)]
    label = lambda pair: f"{pair[0]} {float(pair[1]):.0%}"
    return {
        label(pair): np.array([p == pair for p in pairs])
        for pair in dict.fromkeys(pairs)
    }


def by_source(values: np.ndarray, factors: dict[str, np.ndarray]) -> np.ndarray:
    """Share of the variance by `SOURCES`; what two kinds share is interaction.

    What cannot be told apart where networks are missing counts as interaction too.
    """
    found = evaluate.variance_decomposition(values, factors)
    shares = dict.fromkeys(SOURCES, 0.0)
    for term, share in zip(found.terms, found.corrected, strict=True):
        kinds = {KINDS.get(name, name) for name in term}
        source = kinds.pop() if len(kinds) == 1 else "interactions"
        source = source if source in SOURCES else "interactions"
        shares[source] += float(np.nan_to_num(share))
    total = np.nan if np.isnan(found.total) else 1.0
    return total * np.array([shares[source] for source in SOURCES])


def choose(
    measures: dict[str, np.ndarray], errors: Errors, data: dict[str, np.ndarray]
) -> Choice:
    """Regret of choosing a cell by each measure, on each data set."""
    regret, validation, random = {}, [], []
    for name, values in measures.items():
        found = [_selection(name, values, errors, part) for part in data.values()]
        regret[name] = np.array([_value(one and one.regret) for one in found])
    for part in data.values():
        one = _selection("validation", errors.validation, errors, part)
        validation.append(_value(one and one.validation_regret))
        random.append(_value(one and one.random_regret))
    return Choice(tuple(data), regret, np.array(validation), np.array(random))


def _selection(name, values, errors, part):
    """`bounds.select` among the cells of one data set; None if nothing is left."""
    cells, seeds = np.nonzero(np.ones_like(values[part]))
    flat = values[part][cells, seeds]
    if not np.any(np.isfinite(flat)):
        return None
    return bounds.select(
        None,
        by=flat,
        choose="largest" if name in LARGER_IS_BETTER else "smallest",
        test=errors.test[part][cells, seeds],
        validation=errors.validation[part][cells, seeds],
        cells=cells.tolist(),
    )


def _value(regret):
    return np.nan if regret is None else regret.value


def write_csv(file: Path, measures: Any, gap: Any, factors: Any) -> None:
    """The population as mbe-eval reads it."""
    evaluate.to_csv(file, measures, gap, factors)
