"""What a short file certifies: few bytes cannot have learnt the examples by heart."""

import functools
import math
import os
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float, Int, Real

from jaxtheory._types import ApplyFn, Bound, Params
from jaxtheory.batching import (
    check_batch_size,
    check_count,
    check_examples,
    check_function,
    check_params,
    check_word,
    num_shards,
    sum_examples,
)
from jaxtheory.bounds._gibbs import zero_one_error
from jaxtheory.bounds._kl import kl_inverse
from jaxtheory.bounds._ledger import (
    BY_CONSTRUCTION,
    INDEPENDENT,
    SETTING,
    VERIFIED,
    VIOLATED,
    check_concrete,
    check_delta,
    make_bound,
)
from jaxtheory.bounds._pac_bayes import pac_bayes

CodeForm: TypeAlias = Literal["occam", "kl", "catoni"]


def compression(
    apply_fn: ApplyFn,
    decode: Callable[[Any], Params],
    path: str | os.PathLike,
    x: Any,
    y: Int[ArrayLike, " n"],
    *,
    delta: float,
    num_decoders: int = 1,
    form: CodeForm = "occam",
    batch_size: int | None = None,
    decoder_seen_data: bool = False,
) -> Bound:
    r"""Bound of the error of the network in a file, from the length of the file.

    A file of ``K`` bits has the prior probability ``2^-K K^-2``: over all files of a
    length, and all lengths of at least two bits, that adds up to .65 < 1 (the length is
    coded with the file: files are no prefix code). So a network that its file restores
    has, whatever it was chosen by,

    .. math:: \mathrm{KL} \le \ln 2 \, (K + 2 \log_2 K)

    - ``"occam"``: ``kl_inverse(r, (KL + ln(1/delta)) / n)``: Chernoff's inequality for
      each file and a union over all of them, each with its share of ``delta``;
    - ``"kl"`` and ``"catoni"``: those of `pac_bayes`, which hold for random predictors
      too and are larger here.

    What was tuned on the examples (seed, dimension, number of levels, what to leave
    out) is paid for where it is in the file. What the decoder holds beside the file is
    not: the architecture, the initialisation, a start that was trained on other
    examples. Chosen among several by the examples, it costs ``ln num_decoders``.

    Args:
        apply_fn: Model.
        decode: ``decode(path) -> params``, the only way from the file to the network:
            ``compression.load_compressed``, or ``functools.partial`` of it with an
            initialisation.
        path: The file.
        x: Inputs ``[n, ...]`` of the ``n >= 2`` examples that count.
        y: Their labels.
        delta: Probability that the bound may fail, in (0, 1).
        num_decoders: Among how many pairs of a model and a decoder this one was chosen
            with the help of the examples.
        form: Which inequality.
        batch_size: Examples per chunk; None takes all at once.
        decoder_seen_data: Declares whether the decoder (a start of the subspace) or the
            model depends on `x` and `y` otherwise. If True, it is no certificate.

    Returns:
        A bound on the probability that the network errs on a new example; `complexity`
        is the KL, and the price of the choice of a decoder.

    Raises:
        ValueError: An argument is out of its range, the file empty or missing, or the
            model no classifier of the labels.

    Example:
        >>> import tempfile, pathlib, jax.numpy as jnp
        >>> x = jnp.linspace(-1.0, 1.0, 200)[:, None]
        >>> sign = lambda w, x: jnp.concatenate([-w * x, w * x], axis=1)
        >>> decode = lambda path: jnp.float32(path.read_bytes()[0] - 127)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "one")
        ...     _ = file.write_bytes(bytes([200]))
        ...     y = (x[:, 0] > 0).astype(int)
        ...     bound = compression(sign, decode, file, x, y, delta=0.05)
        >>> round(bound.complexity, 3), round(bound.value, 4)  # ln 2 (8 + 6)
        (9.704, 0.0615)
        >>> bound.certificate
        True

    References:
        Blumer et al., Information Processing Letters 24 (1987) (Occam's razor);
        Langford, JMLR 6 (2005), section 4; Zhou et al., arXiv:1804.05862, theorem 4.3;
        Lotfi et al., arXiv:2211.13609, section 3 (``K + 2 log2 K``).
    """
    check_function("apply_fn", apply_fn)
    check_function("decode", decode)
    check_concrete(x=x, y=y)
    check_word("form", form, ("occam", "kl", "catoni"))
    delta = check_delta(delta)
    num_decoders = check_count(num_decoders=num_decoders)
    check_batch_size(batch_size)
    n = check_examples(x=x, y=y)
    if n < 2:
        raise ValueError("`x` must hold at least 2 examples, but holds 1.")
    num_bits = 8 * _num_bytes(path)
    params = decode(path)
    check_params(params, "decode(path)")
    errors = int(_num_errors(apply_fn, params, (x, y), batch_size, num_shards(x)))
    complexity = float(code_complexity(num_bits)) + math.log(num_decoders)
    fixed = "the model and what decodes the file were fixed before they were seen"
    return make_bound(
        value=_value(errors / n, complexity, n, delta, form),
        empirical_risk=errors / n,
        complexity=complexity,
        delta=delta,
        assumptions=(
            INDEPENDENT,
            (VIOLATED if decoder_seen_data else SETTING, fixed),
            (VERIFIED, f"the file has {num_bits} bits, and restores the network"),
            (VERIFIED, f"the network errs on {errors} of {n} examples"),
            (BY_CONSTRUCTION, "the probabilities of all files add up to at most 1"),
            (BY_CONSTRUCTION, f"ln {num_decoders} nats pay for choosing the decoder"),
        ),
    )


def code_complexity(num_bits: Any) -> Any:
    """``ln 2 (K + 2 log2 K)``, minus the logarithm of a file's probability."""
    bits = np.asarray(num_bits, np.float64)
    return np.log(2) * bits + 2 * np.log(bits)


def occam(
    risk: Real[ArrayLike, "..."],
    complexity: Real[ArrayLike, "..."],
    num_examples: int,
    delta: float,
) -> float | Float[np.ndarray, "..."]:
    """The risk that a predictor of this probability has at most, given its errors."""
    return kl_inverse(risk, (np.asarray(complexity) - np.log(delta)) / num_examples)


def _value(risk, complexity, n, delta, form):
    if form == "occam":
        return np.max(occam(risk, complexity, n, delta))
    return pac_bayes(risk, complexity, num_examples=n, delta=delta, form=form).value


def _num_bytes(path):
    try:
        size = os.path.getsize(path)
    except OSError as error:
        raise ValueError(
            f"`path` must be a file, but {os.fspath(path)!r} cannot be read ({error})."
        ) from error
    if not size:
        raise ValueError(f"`path` must hold a byte, but {os.fspath(path)!r} is empty.")
    return size


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _num_errors(apply_fn, params, data, batch_size, lanes):
    """How many examples the network gets wrong, an exact whole number."""

    def wrong(chunk, weights):
        errors = zero_one_error(apply_fn(params, chunk[0]), jnp.asarray(chunk[1]))
        return jnp.sum((errors * weights > 0).astype(int))

    return sum_examples(wrong, data, batch_size=batch_size, lanes=lanes)
