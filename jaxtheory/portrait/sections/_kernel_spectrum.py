"""The spectrum of the tangent kernel at the start and at the end of training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxtheory import kernels, plot
from jaxtheory.portrait._numbers import compact, percent
from jaxtheory.portrait._section import (
    Finding,
    Row,
    Section,
    always,
    lacking,
    nothing,
)

_CHUNK = 50
# Directions with less than a thousandth of the trace hardly count.
_RIDGE = 1e-3
_GROUPS = 8
_QUANTILE = 2.36  # of Student's t with 7 degrees of freedom: 95 % lie within


def read(plan, history):
    """The spectra, and how surely the number of directions changed.

    The change is measured in groups of training examples that share none, so that
    their spread tells what another sample would have given.
    """
    k = plan.num_classes or 1
    ends = [history.state.initial_params, history.state.params]
    ntk = functools.partial(kernels.empirical_ntk, plan.apply_fn, batch_size=_CHUNK)
    stacked = jnp.stack([ntk(params, plan.x_train) / k for params in ends])
    whole, parts = jax.device_get(_spectra(stacked))
    logs = np.log(parts)
    change = logs[1] - logs[0]
    top = whole.eigenvalues[:, :k].sum(axis=1) / whole.trace
    describe = lambda end: {
        name: values[end].tolist() for name, values in whole._asdict().items()
    }
    return {
        "start": describe(0),
        "end": describe(1),
        "num_top": k,
        "top_share": top.tolist(),
        "num_train": len(plan.x_train),
        "change": float(change.mean()),
        "change_error": float(np.std(change, ddof=1) / np.sqrt(_GROUPS)),
        "group_size": len(plan.x_train) // _GROUPS,
    }


@jax.jit
def _spectra(stacked):
    """Summaries of kernels, and effective dimensions of their diagonal blocks."""
    size = stacked.shape[1] // _GROUPS
    place = jnp.arange(_GROUPS * size).reshape(_GROUPS, size)
    blocks = stacked[:, place[:, :, None], place[:, None]]
    summarise = lambda kernel: kernels.spectrum_summary(
        kernel, ridge=_RIDGE * jnp.trace(kernel)
    )
    parts = jax.vmap(jax.vmap(summarise))(blocks).effective_dimension
    return jax.vmap(summarise)(stacked), parts


def draw(numbers, ax):
    """Both spectra, with their effective dimensions."""
    spectra = {}
    for end in ("start", "end"):
        held = {name: jnp.asarray(value) for name, value in numbers[end].items()}
        spectra[end] = kernels.SpectrumSummary(**held)
    plot.kernel_spectrum(spectra, ax=ax)


def findings(numbers):
    """Whether the kernel concentrated on few directions."""
    start, end = numbers["start"], numbers["end"]
    before, after = start["effective_dimension"], end["effective_dimension"]
    if not np.isfinite([before, after, numbers["change"]]).all():
        return [lacking("the tangent kernel is not finite at the end")]
    k, shares = numbers["num_top"], numbers["top_share"]
    top = f"its top {k} directions hold" if k > 1 else "its first direction holds"
    change, error = numbers["change"], numbers["change_error"]
    text = (
        "At infinite width theory keeps the spectrum of the tangent kernel fixed. Here "
        f"its trace on {numbers['num_train']:,} training examples became "
        f"{compact(end['trace'] / start['trace'])} times what it was, {top} "
        f"{percent(shares[1])} of it after {percent(shares[0])}, and "
        f"its effective dimension (ridge: {percent(_RIDGE)} of the trace) went from "
        f"{compact(before)} to {compact(after)}: {_movement(change, error)} "
        f"(logarithm {change:+.3f} ± {error:.3f} in {_GROUPS} groups of "
        f"{numbers['group_size']:,} examples)."
    )
    return [Finding(text, "measured")]


def _movement(change, error):
    if abs(change) <= _QUANTILE * error:
        return "no more than from one sample to the next"
    return "it concentrated" if change < 0 else "it spread out"


def rows(numbers):
    """Effective dimension of the kernel."""
    start, end = (
        compact(numbers[end]["effective_dimension"]) for end in ("start", "end")
    )
    return [Row("effective dimension of the kernel", end, f"started at {start}")]


SECTION = Section(
    "kernel_spectrum",
    "Spectrum of the tangent kernel",
    always,
    nothing,
    nothing,
    read,
    draw,
    findings,
    rows,
)
