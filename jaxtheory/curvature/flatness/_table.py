"""All flatness measures at once, for a study of a population of networks."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Num, PyTree

from jaxtheory._types import ApplyFn, Estimate, KeyArray, LossFn, Params
from jaxtheory.batching import check_examples, check_key
from jaxtheory.curvature._sharpness import batch_sharpness, sharpness
from jaxtheory.curvature.flatness._alignment import noise_alignment
from jaxtheory.curvature.flatness._ascent import (
    asam_sharpness,
    keskar_sharpness,
    m_sharpness,
    sam_sharpness,
)
from jaxtheory.curvature.flatness._common import size
from jaxtheory.curvature.flatness._crossing import epsilon_sharpness, pac_bayes
from jaxtheory.curvature.flatness._local_entropy import local_entropy
from jaxtheory.curvature.flatness._quadratic import (
    effective_dimension,
    fisher_rao,
    hessian_frobenius_norm,
    hessian_trace,
    shannon_entropy,
)
from jaxtheory.curvature.flatness._relative import relative_flatness
from jaxtheory.curvature.flatness._smoothed import lpf


class Measure(NamedTuple):
    """A row of the table.

    Attributes:
        function: ``function(apply_fn, loss_fn, params, x, y, *, ...)``.
        random: Whether it takes a `key`.
        options: Options in place of the function's own defaults.
    """

    function: Callable[..., Any]
    random: bool
    options: Mapping[str, Any] = {}


MEASURES: Mapping[str, Measure] = {
    "lpf": Measure(lpf, True),
    "lpf_rise": Measure(lpf, True, {"quantity": "rise"}),
    "epsilon_sharpness": Measure(epsilon_sharpness, False),
    "pac_bayes": Measure(pac_bayes, True, {"num_samples": 8}),
    "fisher_rao": Measure(fisher_rao, False),
    "shannon_entropy": Measure(shannon_entropy, False),
    "local_entropy": Measure(local_entropy, True),
    "sharpness": Measure(sharpness, True, {"num_iterations": 30}),
    "hessian_trace": Measure(hessian_trace, True),
    "hessian_frobenius_norm": Measure(hessian_frobenius_norm, True),
    "effective_dimension": Measure(effective_dimension, True),
    "sam_sharpness": Measure(sam_sharpness, False),
    "sam_sharpness_ascended": Measure(sam_sharpness, False, {"num_steps": 10}),
    "asam_sharpness": Measure(asam_sharpness, False),
    "asam_sharpness_ascended": Measure(asam_sharpness, False, {"num_steps": 10}),
    "m_sharpness": Measure(m_sharpness, True, {"minibatch_size": 32}),
    "keskar_sharpness": Measure(keskar_sharpness, False),
    "relative_flatness": Measure(relative_flatness, True),
    "batch_sharpness": Measure(
        batch_sharpness, True, {"batch_size": 32, "num_batches": 16}
    ),
    "noise_alignment": Measure(noise_alignment, True),
}


def all_measures(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    params: Params,
    x: PyTree[Num[Array, "n ..."]],
    y: PyTree[Num[Array, "n ..."]],
    *,
    key: KeyArray,
    initial_params: Params | None = None,
    names: Iterable[str] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Evaluate a table of flatness measures at one point.

    For a population of parameters of equal shapes, call it for one after the other, or
    stacked on axis 0 under `jax.vmap`: each measure is compiled by itself, once. (One
    `jit` around all of them makes a program that takes minutes to compile.) The same
    key makes networks comparable: all meet the same perturbations.

    Args:
        apply_fn: The model, ``apply_fn(params, x) -> outputs[n, ...]``.
        loss_fn: ``loss_fn(outputs, targets) -> losses[n]``.
        params: Parameters.
        x: Inputs ``[n, ...]``.
        y: Targets ``[n, ...]``.
        key: What is random; a measure's share does not depend on `names`.
        initial_params: Where training began, for ``pac_bayes``.
        names: Rows of `MEASURES`, or one; None takes all (``pac_bayes`` only with
            `initial_params`).
        options: For a chosen row's name, options of its function beside those that
            `MEASURES` sets, but for `key` and `initial_params`, which all share.
            Batches of minibatch measures are at most ``n / 2`` where not set here.

    Returns:
        ``{name: Estimate or number}``. A measure that returns several fields is spread
        out: its first under the name itself, the others under ``"name.field"``.

    Raises:
        ValueError: No name or an unknown one, options of a row that is not chosen or
            that are not its own, ``pac_bayes`` without `initial_params`, one example
            for a minibatch measure, or as for the measures.

    Memory:
        The largest of the measures.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = lambda w, x: x * w
        >>> loss = lambda outputs, y: (outputs - y) ** 2 / 2
        >>> args = (model, loss, jnp.array(3.0), jnp.ones(2), jnp.zeros(2))
        >>> names = ["fisher_rao", "epsilon_sharpness"]
        >>> found = all_measures(*args, key=jax.random.key(0), names=names)
        >>> list(found)
        ['fisher_rao', 'epsilon_sharpness', 'epsilon_sharpness.distance',
        'epsilon_sharpness.found']

    References:
        Bisla, Wang & Choromanska, arXiv:2201.08025 (a population of networks); Jiang
        et al., arXiv:1912.02178.
    """
    check_key(key)
    n = check_examples(x=x, y=y)
    chosen, options = _choose(names, options, initial_params)
    found: dict[str, Any] = {}
    for name in chosen:
        function, random, preset = MEASURES[name]
        own = options.get(name, {})
        preset = _fitted(name, preset, own, n, size(params))
        given: dict[str, Any] = {**preset, **own}
        if random:
            given["key"] = jax.random.fold_in(key, list(MEASURES).index(name))
        if name == "pac_bayes":
            given["initial_params"] = initial_params
        found |= _spread(name, function(apply_fn, loss_fn, params, x, y, **given))
    return found


def _fitted(name, preset, own, n, num_parameters):
    """The preset options, as large as examples and parameters allow."""
    fitted = dict(preset)
    for option in ("minibatch_size", "batch_size"):
        if option in preset and option not in own:
            if n < 2:
                raise ValueError(
                    f"`x` must hold at least two examples for {name!r}, which takes "
                    f"batches of half of them, but holds {n}. Pass more, or leave it "
                    "out of `names`."
                )
            fitted[option] = min(preset[option], n // 2)
    if "num_iterations" in preset:
        fitted["num_iterations"] = min(preset["num_iterations"], num_parameters)
    return fitted


def _choose(names, options, initial_params):
    """The checked names and options."""
    options = {} if options is None else options
    if names is None:
        skipped = {"pac_bayes"} if initial_params is None else set()
        chosen = [name for name in MEASURES if name not in skipped]
    else:
        chosen = [names] if isinstance(names, str) else list(names)
    for argument, some in (("names", chosen), ("options", options)):
        unknown = [name for name in some if name not in MEASURES]
        if unknown:
            raise ValueError(
                f"`{argument}` must name rows of `MEASURES`, but names {unknown}. "
                f"There are {[*MEASURES]}."
            )
    if not chosen:
        raise ValueError(
            "`names` must name at least one row of `MEASURES`, but is empty. Leave it "
            "out for all."
        )
    _check_options(options, chosen)
    if "pac_bayes" in chosen and initial_params is None:
        raise ValueError(
            "`initial_params` must be given for 'pac_bayes', which measures from where "
            "training began, but was None. Pass them, or leave it out of `names`."
        )
    return chosen, options


def _check_options(options, chosen):
    """Raise for what would be ignored."""
    for name, own in options.items():
        if not isinstance(own, Mapping):
            raise ValueError(
                f"`options[{name!r}]` must map names of options to values, but is of "
                f"type {type(own).__name__}."
            )
        if name not in chosen:
            raise ValueError(
                f"`options` must be for chosen rows, but {name!r} is none of {chosen}. "
                "Add it to `names` (and `initial_params` for 'pac_bayes')."
            )
        for shared in ("key", "initial_params"):
            if shared in own:
                raise ValueError(
                    f"`options[{name!r}]` must not hold `{shared}`, which all measures "
                    f"share. Pass `all_measures(..., {shared}=...)`, or call the "
                    "measure by itself."
                )


def _spread(name, result):
    """Fields of a result with several: the first under the bare name."""
    if not hasattr(result, "_fields") or isinstance(result, Estimate):
        return {name: result}
    fields, first, rest = result._fields, result[0], 1
    if fields[:3] == Estimate._fields:  # an estimate, and more
        first, rest = Estimate(*result[:3]), 3
    others = zip(fields[rest:], result[rest:], strict=True)
    return {name: first, **{f"{name}.{field}": value for field, value in others}}
