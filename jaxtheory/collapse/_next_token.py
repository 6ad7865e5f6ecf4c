"""The law of next-token prediction: each layer predicts better by the same factor."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Integer

from jaxtheory.batching import check_count, check_examples
from jaxtheory.collapse._law import InputLayer, check_num_layers
from jaxtheory.collapse._moments import check_features, rounding_of
from jaxtheory.collapse._separation import (
    LayerNames,
    SeparationLaw,
    check_order,
    fit_log_line,
)

_matmul = partial(jnp.matmul, precision="highest")

TokenForm = Literal["one_hot", "integer"]


def prediction_residual(
    features: Float[Array, "*n d"],
    tokens: Integer[Array, "*n"],
    *,
    form: TokenForm = "one_hot",
    num_tokens: int | None = None,
) -> Float[Array, ""]:
    """Share of the next token's variance that a linear map of features leaves.

    ``PR = 1 - R^2`` of the least-squares regression, with an intercept, of the next
    token on the features. By `form`:

    * "one_hot": the token as a one-hot vector, residual and total summed over the
      vocabulary: ``sum_v ||y_v - fit_v||^2 / sum_v ||y_v - mean_v||^2``.
    * "integer": the token's number in the vocabulary as a real number. This is what was
      published; it changes when the vocabulary is numbered in another order, so that
      two tokenizers cannot be compared.

    0 says nothing where there are no more examples than features: any token can be
    fitted then. `next_token_law` reports the rank.

    Args:
        features: Features of one layer at each position, such as ``[n, t, d]``; all
            axes but the last are examples.
        tokens: The token that follows each position. A negative one (padding) leaves
            its position out.
        form: "one_hot" or "integer".
        num_tokens: Size of the vocabulary; None takes the largest token plus one.
            Needed where tokens are traced and `form` is "one_hot".

    Returns:
        A number in [0, 1]; NaN where all tokens are the same, or a feature used is not
        finite. Below 1e-6 (1e-15 in double precision) the one-hot form is rounding.

    Raises:
        ValueError: Shapes or dtypes do not fit, an option is not one of its words, or
            `num_tokens` is missing or too small.

    Memory:
        Two copies of the features and ``num_tokens d`` numbers; time ``O(n d^2)``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> tokens = jnp.arange(12) % 3
        >>> line = tokens[:, None].astype(float)
        >>> for form in ("integer", "one_hot"):
        ...     print(f"{prediction_residual(line, tokens, form=form):.3f}")
        0.000
        0.500

    References:
        He & Su 2024, arXiv:2408.13442 (the integer form).
    """
    _check_form(form)
    rows, flat, num_tokens = _check_layer(features, tokens, form, num_tokens)
    return _residual(rows, flat, form, num_tokens)[0]


def next_token_law(
    layers: Mapping[str, Float[Array, "*n d"]] | Sequence[Float[Array, "*n d"]],
    tokens: Integer[Array, "*n"],
    *,
    form: TokenForm = "one_hot",
    num_tokens: int | None = None,
    input_layer: InputLayer = "exclude",
) -> SeparationLaw:
    """Measure `prediction_residual` layer by layer and fit ``PR_l = PR_0 ratio^l``.

    Args:
        layers: Features of each layer from the embedding to the last, at the same
            positions. A mapping must be in network order.
        tokens: The token that follows each position; negative ones are left out.
        form: "one_hot", or "integer" as published.
        num_tokens: As in `prediction_residual`.
        input_layer: "exclude" leaves the first layer, the embedding, out of the fit, as
            published; "include" fits all. Its value is reported either way. Others
            fit all if not told: tell `random_drop_test` and `plot.separation_law` too.

    Returns:
        The law in the natural logarithm, with ``PR_l`` in place of ``D_l`` and the
        ranks of the features (the published slopes are in ``log10``: divide by 2.3026).

    Raises:
        ValueError: There are fewer than three layers to fit, or an input does not fit.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> tokens = jnp.arange(90) % 3
        >>> noise = jax.random.normal(jax.random.key(0), (90, 4))
        >>> layers = [jnp.eye(3, 4)[tokens] + noise / 2**l for l in range(6)]
        >>> law = next_token_law(layers, tokens)
        >>> bool(0.2 < law.ratio < 0.4), law.values.shape
        (True, (6,))

    References:
        He & Su 2024, arXiv:2408.13442.
    """
    _check_form(form)
    first = check_num_layers(len(layers), input_layer, "layers")
    named = isinstance(layers, Mapping)
    names = LayerNames(str(name) for name in layers) if named else None
    if names is not None:
        check_order(names)
    measured = []
    for name, features in layers.items() if named else enumerate(layers):
        full = f"layers[{name!r}]"
        checked = _check_layer(features, tokens, form, num_tokens, full)
        measured.append(_residual(checked[0], checked[1], form, checked[2]))
    values = jnp.stack([value for value, _ in measured])
    ranks = jnp.stack([rank for _, rank in measured])
    return fit_log_line(values, first)._replace(ranks=ranks, names=names)


def _check_form(form):
    """Raise unless `form` is one of its words."""
    if form not in ("one_hot", "integer"):
        raise ValueError(f'`form` must be "one_hot" or "integer", but was {form!r}.')


def _check_layer(features, tokens, form, num_tokens, name="features"):
    """Features as rows, tokens as a vector, and the vocabulary, after checks."""
    check_features(features, name)
    check_examples(**{name: features, "tokens": tokens})
    shape, dtype = jnp.shape(tokens), jnp.result_type(tokens)
    if not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(
            f"`tokens` must be integers, the numbers of tokens, but have dtype {dtype}."
        )
    if jnp.shape(features)[:-1] != shape:
        raise ValueError(
            f"`tokens` must have the shape of `{name}` without its last axis (one next "
            f"token for each position), but has shape {shape} against "
            f"{jnp.shape(features)}."
        )
    rows = jnp.reshape(features, (-1, jnp.shape(features)[-1]))
    flat = jnp.ravel(tokens)
    num_tokens = _vocabulary(flat, num_tokens) if form == "one_hot" else 0
    return rows, flat, num_tokens


def _vocabulary(tokens, num_tokens):
    """Size of the vocabulary, which concrete tokens tell."""
    if num_tokens is not None:
        num_tokens = check_count(num_tokens=num_tokens, at_least=2)
    if isinstance(tokens, Tracer):
        if num_tokens is None:
            raise ValueError(
                "`num_tokens` must be given where `tokens` are traced (under jit, vmap "
                "or scan), because their values are not known there."
            )
        return num_tokens
    largest = int(tokens.max())
    if num_tokens is not None and largest >= num_tokens:
        raise ValueError(
            f"`num_tokens` must be above the largest token {largest}, but was "
            f"{num_tokens}."
        )
    return num_tokens or largest + 1


@partial(jax.jit, static_argnums=(2, 3))
def _residual(features, tokens, form, num_tokens):
    """``1 - R^2`` and the rank of the centred features."""
    dtype = jnp.promote_types(features.dtype, jnp.float32)
    used = tokens >= 0
    if form == "one_hot":
        used &= tokens < num_tokens
    count = jnp.sum(used).astype(dtype)
    rows = jnp.where(used[:, None], features, 0).astype(dtype)
    finite = jnp.all(jnp.isfinite(rows))
    rows = jnp.where(finite, rows, 0)
    rows = rows / jnp.maximum(jnp.max(jnp.abs(rows)), jnp.finfo(dtype).tiny)
    length = jnp.linalg.norm(rows)
    # The second turn takes out the rounding of the first mean, which is a direction.
    for _ in range(2):
        mean = jnp.sum(rows, axis=0, keepdims=True) / count
        rows = jnp.where(used[:, None], rows - mean, 0)
    basis, values, _ = jnp.linalg.svd(rows, full_matrices=False)
    cutoff = rounding_of(values[0], length)
    basis = basis * (values > cutoff)[None, :]
    if form == "integer":
        targets = jnp.where(used, tokens, 0).astype(dtype)
        centred = jnp.where(used, targets - jnp.sum(targets) / count, 0)
        total = jnp.sum(jnp.square(centred))
        left = centred - _matmul(basis, _matmul(basis.T, centred))
        residual = jnp.sum(jnp.square(left))
    else:
        index = jnp.where(used, tokens, num_tokens)
        sums = jax.ops.segment_sum(basis, index, num_tokens)
        counts = jax.ops.segment_sum(used.astype(dtype), index, num_tokens)
        total = count - jnp.sum(jnp.square(counts)) / count
        residual = total - jnp.sum(jnp.square(sums))
    value = jnp.clip(residual / jnp.where(total == 0, 1, total), 0, 1)
    defined = finite & (total > 0)
    return jnp.where(defined, value, jnp.nan), jnp.sum(values > cutoff)
