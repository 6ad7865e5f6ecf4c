"""Every bound that the given inputs allow, side by side."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from jaxtheory._types import Bound
from jaxtheory.batching import check_key
from jaxtheory.bounds._cmi import evaluated_cmi, functional_cmi
from jaxtheory.bounds._compression import compression
from jaxtheory.bounds._few_shot import few_shot
from jaxtheory.bounds._fractal import (
    fractal_dimension,
    random_set_box,
    sharpness_dimension,
)
from jaxtheory.bounds._gaussian import gaussian_pac_bayes, prior_bound
from jaxtheory.bounds._geometric import geometric_few_shot
from jaxtheory.bounds._heavy_tail import heavy_tail_sde
from jaxtheory.bounds._holdout import holdout
from jaxtheory.bounds._margin import linear_margin
from jaxtheory.bounds._norms_margins import margin_distribution
from jaxtheory.bounds._norms_path import path_norm
from jaxtheory.bounds._norms_spectral import spectral
from jaxtheory.bounds._ntk import ntk_complexity
from jaxtheory.bounds._pac_bayes import pac_bayes
from jaxtheory.bounds._random_set import random_set_stability, random_set_topological
from jaxtheory.bounds._sgld import sgld_gradient_norm, sgld_incoherence
from jaxtheory.bounds._stability import uniform_stability
from jaxtheory.bounds._topological import topological
from jaxtheory.bounds._trajectory_finite_set import finite_set
from jaxtheory.bounds._virtual_noise import virtual_noise

_FUNCTIONS: dict[str, Callable[..., Bound]] = {
    function.__name__: function
    for function in (
        compression,
        evaluated_cmi,
        few_shot,
        finite_set,
        fractal_dimension,
        functional_cmi,
        gaussian_pac_bayes,
        geometric_few_shot,
        heavy_tail_sde,
        holdout,
        linear_margin,
        margin_distribution,
        ntk_complexity,
        pac_bayes,
        path_norm,
        prior_bound,
        random_set_box,
        random_set_stability,
        random_set_topological,
        sgld_gradient_norm,
        sgld_incoherence,
        sharpness_dimension,
        spectral,
        topological,
        uniform_stability,
        virtual_noise,
    )
}

# What means something else in these functions than in the others, which share it: these
# take it under their own name alone. Mixed up, the numbers would fit and be wrong.
_OWN: dict[str, tuple[str, ...]] = {
    "dimension": ("sharpness_dimension",),  # not that of a set of iterates
    "empirical_risk": ("pac_bayes",),  # the Gibbs risk, not that at the end of a run
    "form": ("compression", "evaluated_cmi", "pac_bayes"),  # each has its own words
    "lipschitz": ("fractal_dimension", "random_set_box", "sharpness_dimension"),
    "loss_bound": ("evaluated_cmi", "functional_cmi"),  # goes with the losses
    "losses": ("evaluated_cmi", "functional_cmi"),  # of runs, pairs and both examples
    "noise_scales": ("virtual_noise",),  # of noise that the run does not have
    "num_examples": ("holdout",),  # held out, not trained on
    "y": ("ntk_complexity",),  # real targets, not class indices
}


class Table(NamedTuple):
    """Bounds by the name of their function, and why the others are not there.

    Attributes:
        bounds: Those that could be computed, the smallest value first.
        missing: Of each of the others, what was not given, as `table` takes it.
        refused: Of those whose arguments were given, what is wrong with them.
    """

    bounds: dict[str, Bound]
    missing: dict[str, tuple[str, ...]]
    refused: dict[str, str]

    def text(self) -> str:
        """A line a bound, then what is missing of the others."""
        lines = [f"{'bound':<24}{'value':>9}{'risk':>10}  {'':<12}{'':<9}not verified"]
        for name, bound in self.bounds.items():
            kind = "certificate" if bound.certificate else "correlate"
            vacuous = "vacuous" if bound.vacuous else ""
            lines.append(
                f"{name:<24}{bound.value:>9.4g} {bound.empirical_risk:>9.4g}  "
                f"{kind:<12}{vacuous:<9}{_unverified(bound)}".rstrip()
            )
        lines += [f"{name:<24}refused: {why}" for name, why in self.refused.items()]
        lines += [
            f"{name:<24}not given: {', '.join(names)}"
            for name, names in self.missing.items()
        ]
        return "\n".join(lines)


def table(inputs: Mapping[str, Any]) -> Table:
    """Compute every bound that the given inputs allow.

    A bound is computed if all arguments are there that its function requires; those
    that it may have are used if they are there. Nothing is computed from the inputs on
    the way: this compares, it does not measure.

    A smaller value is not a better bound: certificates hold, and the others rest on
    what `Bound.assumptions` says was estimated or taken on trust. The certificates of
    one table hold one at a time: for the smallest of ``j`` of them at once, divide
    `delta` by ``j``.

    Args:
        inputs: By name of an argument, as in ``num_params``, for all bounds that have
            one; or for one bound alone, as in ``spectral.quantile``, which goes before
            the other. A few names mean something else in some bounds, and these take
            them in the second way alone: ``holdout.num_examples`` is the number of
            held-out examples, ``num_examples`` that of the training examples;
            ``functional_cmi.losses`` are ``[t, n, 2]``, ``losses`` ``[r, n]``;
            ``ntk_complexity.y`` are real targets, ``y`` class indices; and
            ``pac_bayes.empirical_risk`` is a Gibbs risk. `Table.missing` names what is
            lacking as it is to be given. A random ``key`` is folded with the bound's
            place, so that no two use the same.

    Returns:
        The bounds, and why the others are not there.

    Raises:
        ValueError: A name is that of no argument of any bound, or one that each bound
            takes under its own name alone.

    Example:
        >>> found = table(
        ...     {
        ...         "num_errors": 3,
        ...         "holdout.num_examples": 100,
        ...         "num_examples": 1000,
        ...         "delta": 0.05,
        ...         "pac_bayes.empirical_risk": 0.02,
        ...         "kl": 40.0,
        ...     }
        ... )
        >>> {name: round(bound.value, 3) for name, bound in found.bounds.items()}
        {'holdout': 0.076, 'pac_bayes': 0.095}
        >>> found.missing["random_set_stability"]
        ('empirical_risk', 'beta', 'num_points', 'loss_bound')
    """
    keys = {
        name: {a: _key(name, a) for a in inspect.signature(function).parameters}
        for name, function in _FUNCTIONS.items()
    }
    _check_names(inputs, keys)
    found: dict[str, Bound] = {}
    missing: dict[str, tuple[str, ...]] = {}
    refused: dict[str, str] = {}
    for place, (name, function) in enumerate(_FUNCTIONS.items()):
        given = _given(inputs, name, keys[name])
        lacking = tuple(
            keys[name][argument]
            for argument, parameter in inspect.signature(function).parameters.items()
            if parameter.default is parameter.empty and argument not in given
        )
        if lacking:
            missing[name] = lacking
            continue
        if "key" in given:
            check_key(given["key"])
            given["key"] = jax.random.fold_in(given["key"], place)
        try:
            found[name] = function(**given)
        except ValueError as error:
            refused[name] = str(error)
    ordered = sorted(found, key=lambda name: found[name].value)
    return Table({name: found[name] for name in ordered}, missing, refused)


def _key(name, argument):
    """What an argument is called in `inputs` when it is not for one bound alone."""
    return f"{name}.{argument}" if name in _OWN.get(argument, ()) else argument


def _given(inputs, name, keys):
    """The arguments of one bound; those under its own name go before the others."""
    shared = {a: inputs[key] for a, key in keys.items() if key in inputs}
    own = {a: inputs[f"{name}.{a}"] for a in keys if f"{name}.{a}" in inputs}
    return shared | own


def _check_names(inputs, keys):
    """Raise if a name is that of no argument, or of one that is not shared."""
    shared = {key for of_one in keys.values() for key in of_one.values()}
    known = shared | {f"{name}.{a}" for name, of_one in keys.items() for a in of_one}
    for name in inputs:
        if name in known:
            continue
        own = " or ".join(f"'{function}.{name}'" for function in _OWN.get(name, ()))
        if own:
            raise ValueError(
                f"`inputs` must say for which bound {name!r} is, because it means "
                f"something else in each: write {own}."
            )
        plain = sorted(key for key in shared if "." not in key)
        raise ValueError(
            f"`inputs` must be arguments of bounds, by name, but {name!r} is none. "
            f"Those for all bounds are {', '.join(plain)}; for one bound alone "
            "write its name and a point before."
        )


def _unverified(bound):
    """What a bound rests on that was not verified, in short."""
    kinds = [text.split(":")[0] for text in bound.assumptions]
    counts = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    return ", ".join(
        f"{counts[kind]} {kind}"
        for kind in ("estimated", "taken on trust", "violated")
        if kind in counts
    )
