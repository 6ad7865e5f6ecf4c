"""Every bound that the given inputs allow, side by side."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from jaxtheory._types import Bound
from jaxtheory.batching import check_key
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
        few_shot,
        finite_set,
        fractal_dimension,
        gaussian_pac_bayes,
        geometric_few_shot,
        heavy_tail_sde,
        holdout,
        linear_margin,
        pac_bayes,
        prior_bound,
        random_set_box,
        random_set_stability,
        random_set_topological,
        sgld_gradient_norm,
        sgld_incoherence,
        sharpness_dimension,
        topological,
        uniform_stability,
        virtual_noise,
    )
}


class Table(NamedTuple):
    """Bounds by the name of their function, and why the others are not there.

    Attributes:
        bounds: Those that could be computed, the smallest value first.
        missing: Of each of the others, the arguments that were not given.
        refused: Of those whose arguments were given, what is wrong with them.
    """

    bounds: dict[str, Bound]
    missing: dict[str, tuple[str, ...]]
    refused: dict[str, str]

    def text(self) -> str:
        """A line a bound, then what is missing of the others."""
        lines = [f"{'bound':<24}{'value':>9}{'risk':>9}  {'':<12}{'':<9}not verified"]
        for name, bound in self.bounds.items():
            kind = "certificate" if bound.certificate else "correlate"
            vacuous = "vacuous" if bound.vacuous else ""
            lines.append(
                f"{name:<24}{bound.value:>9.4g}{bound.empirical_risk:>9.4g}  "
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
        inputs: By name of an argument, as in ``empirical_risk``, for all bounds that
            have one; or for one bound alone, as in ``sharpness_dimension.dimension``,
            which goes before the other. A random ``key`` is folded with the bound's
            place, so that no two use the same.

    Returns:
        The bounds, and why the others are not there.

    Raises:
        ValueError: A name is that of no argument of any bound.

    Example:
        >>> found = table(
        ...     {
        ...         "num_errors": 3,
        ...         "num_examples": 100,
        ...         "delta": 0.05,
        ...         "empirical_risk": 0.02,
        ...         "kl": 4.0,
        ...     }
        ... )
        >>> {name: round(bound.value, 3) for name, bound in found.bounds.items()}
        {'holdout': 0.076, 'pac_bayes': 0.151}
        >>> found.missing["random_set_stability"]
        ('beta', 'num_points', 'loss_bound')
    """
    signatures = {
        name: inspect.signature(function).parameters
        for name, function in _FUNCTIONS.items()
    }
    _check_names(inputs, signatures)
    found: dict[str, Bound] = {}
    missing: dict[str, tuple[str, ...]] = {}
    refused: dict[str, str] = {}
    for place, (name, parameters) in enumerate(signatures.items()):
        given = _given(inputs, name, parameters)
        lacking = tuple(
            argument
            for argument, parameter in parameters.items()
            if parameter.default is parameter.empty and argument not in given
        )
        if lacking:
            missing[name] = lacking
            continue
        if "key" in given:
            check_key(given["key"])
            given["key"] = jax.random.fold_in(given["key"], place)
        try:
            found[name] = _FUNCTIONS[name](**given)
        except ValueError as error:
            refused[name] = str(error)
    ordered = sorted(found, key=lambda name: found[name].value)
    return Table({name: found[name] for name in ordered}, missing, refused)


def _given(inputs, name, parameters):
    """The arguments of one bound; those under its own name go before the others."""
    own = {
        argument: inputs[f"{name}.{argument}"]
        for argument in parameters
        if f"{name}.{argument}" in inputs
    }
    return {a: inputs[a] for a in parameters if a in inputs} | own


def _check_names(inputs, signatures):
    """Raise if a name is that of no argument."""
    known = {argument for parameters in signatures.values() for argument in parameters}
    known |= {
        f"{name}.{a}" for name, parameters in signatures.items() for a in parameters
    }
    for name in inputs:
        if name not in known:
            plain = sorted(argument for argument in known if "." not in argument)
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
