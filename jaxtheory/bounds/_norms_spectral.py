"""The margin bound of networks of given spectral norms and distances from a start."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import ArrayLike, Float, Integer, Num

from jaxtheory._types import Bound, Params
from jaxtheory.bounds._ledger import BY_CONSTRUCTION, SETTING, check_concrete
from jaxtheory.bounds._norms import check_same_shapes
from jaxtheory.bounds._norms_layers import (
    ARCHITECTURE,
    NETWORK,
    Dense,
    read_layers,
    read_problem,
    unit_scale,
)
from jaxtheory.bounds._norms_margins import grid_up, margin_bound


def spectral(
    params: Params,
    x: Num[ArrayLike, "n ..."],
    y: Integer[ArrayLike, " n"],
    *,
    layers: Sequence[str],
    delta: float,
    initial_params: Params | None = None,
    activation: Literal["relu", "tanh"] = "relu",
    quantile: float | None = None,
) -> Bound:
    r"""Margin bound on the error of a dense network, from its spectral norms.

    With ``s_i`` the spectral norm of layer ``i``, ``b_i`` the sum over its outputs of
    the Euclidean norms of the columns of ``W_i - M_i``, and ``h_i`` a limit to the
    norm of all its inputs together (``h_1 = |X|_F``, ``h_(i+1) = s_i h_i``), the
    outputs on the ``n`` examples are covered to ``e`` by as many as

    .. math:: \ln N(e) \le \sum_i \lceil (c_i / (a_i e))^2 \rceil \ln(2 d_i k_i),
        \quad c_i = b_i h_i \prod_{j > i} s_j,
        \quad a_i \propto c_i^{2/3}, \; \sum_i a_i = 1,

    for layers ``[d_i, k_i]``; without rounding up, the squared spectral complexity
    of Bartlett, Foster and Telgarsky, ``prod s_i^2 (sum (b_i / s_i)^(2/3))^3 |X|_F^2
    / e^2`` times a logarithm. The bound is that of `margin_distribution` with ``R /
    gamma`` the chain over the scales ``e_j = 2^-j sqrt(n) / 2``,

    .. math:: \min_{J \ge 1} \; \frac{e_J}{\sqrt n} + \frac1n \sum_{j \le J}
        (e_j + e_{j-1}) \sqrt{2 \ln(N'_j N'_{j-1})},
        \quad N'_j = N(e_j \gamma / \sqrt 2).

    A bias is a row more of ``W_i``, with the input 1. All ``s_i`` and ``b_i`` are
    rounded up to the grid ``2^(q/8)``, whose choice is paid for.

    The constants are derived, not quoted: (1) the functions of one layer are ``b_i
    h_i`` times a mixture of ``2 d_i k_i`` matrices of norm at most 1, and as many of
    them as the rounded square, drawn at random, come as near as ``a_i e`` (Maurey);
    (2) what covers is projected on the convex set that it covers, so that it obeys
    the same norms, and feeds the next layer; (3) errors grow by at most the norms of
    the layers that follow; (4) the ramp of a margin is ``sqrt(2) / gamma``-Lipschitz;
    (5) Massart's inequality at each scale, which is Dudley's integral as a sum. The
    published theorem hides its constants, and its lemma A.8 integrates.

    Args:
        params: Flax parameters of dense layers, as of `models.MLP` with the standard
            parametrisation.
        x: The training inputs ``[n, ...]``, flattened.
        y: Their class indices.
        layers: Names of all layers in `params`, from input to output.
        delta: As of `margin_distribution`.
        initial_params: The ``M_i``: where training began, say, and nothing that has
            seen the examples. None takes zero.
        activation: Between the layers.
        quantile: As of `margin_distribution`.

    Returns:
        The bound on the probability of error, on the host in float64, of the network
        that these layers make with `activation` between them, whatever model they are
        from. It is a certificate, and vacuous for nearly every trained network.

    Raises:
        ValueError: `layers` are not dense, not all, do not feed each other, or do not
            fit `x` and `y`; a value is not finite, traced or out of range.

    Memory:
        The activations of one layer; a singular value decomposition a layer.

    Example:
        >>> import numpy as np
        >>> y = np.arange(1_000_000) % 2
        >>> params = {"output": {"kernel": np.eye(2)}}
        >>> bound = spectral(
        ...     params, np.eye(2)[y] - 0.5, y, layers=("output",), delta=0.05
        ... )
        >>> f"{bound.value:.2f} {bound.certificate}"
        '0.17 True'

    References:
        Bartlett, Foster & Telgarsky 2017, arXiv:1706.08498, theorem 1.1, lemmas 3.2
        and A.7.
    """
    found, inputs, margins = read_problem(params, x, y, layers, activation)
    start, setting = [Dense(0 * layer.kernel, None) for layer in found], ()
    if initial_params is not None:
        text = "`initial_params` were fixed before the examples were seen"
        setting = ((SETTING, text),)
        check_concrete(initial_params=initial_params)
        check_same_shapes(params, initial_params)
        start = read_layers(initial_params, layers, "initial_params")
    # What overflows here is an infinite bound.
    with np.errstate(over="ignore", invalid="ignore"):
        norms, price = _norms(found, start)
        radii, logs = _radii(found, norms, inputs)
    return margin_bound(
        margins,
        lambda gammas: _chain(radii, logs, len(inputs), gammas),
        price=price,
        delta=delta,
        quantile=quantile,
        assumptions=(
            *setting,
            ARCHITECTURE,
            (BY_CONSTRUCTION, f"{NETWORK}{activation}"),
            (BY_CONSTRUCTION, "spectral norms and distances are on a grid"),
        ),
    )


def _norms(found, start) -> tuple[Float[np.ndarray, "layers 2"], float]:
    """Spectral norm and distance of each layer, rounded up, and what that costs."""
    norms, price = [], 0.0
    for layer, first in zip(found, start, strict=True):
        weights = layer.joined()
        move = weights.copy()
        move[: len(first.joined())] -= first.joined()
        spread = np.sqrt(np.square(move).sum(axis=0)).sum()
        # LAPACK's error may not make the limit smaller than the norm.
        raw = np.linalg.norm(weights, 2) * (1 + 1e-12), spread
        rounded = [grid_up(float(value)) for value in raw]
        norms.append([value for value, _ in rounded])
        price += sum(nats for _, nats in rounded)
    return np.array(norms), price


def _radii(found, norms, inputs):
    """``c_i / a_i``, and the logarithms of the numbers of matrices."""
    n, sizes = len(inputs), []
    scaled, scale = unit_scale(inputs)
    size = scale * np.sqrt(np.square(scaled).sum())
    for layer, (spectral_norm, _) in zip(found, norms, strict=True):
        size = size if layer.bias is None else np.hypot(size, np.sqrt(n))
        sizes.append(size)
        size = spectral_norm * size
    after = np.append(np.cumprod(norms[:0:-1, 0])[::-1], 1.0)
    limits = norms[:, 1] * np.array(sizes) * after
    # c / a, where a is proportional to c^(2/3), without a division by zero.
    radii = np.cbrt(limits) * np.sum(np.cbrt(limits) ** 2)
    counts = [2 * layer.joined().size for layer in found]
    return radii, np.log(counts)


def _chain(radii, logs, n, gammas):
    """Limits to the Rademacher complexity of the ramp, one for each margin."""
    scales = np.sqrt(n) / 2 * 2.0 ** -np.arange(41)
    squares = 2 * (radii[:, None, None] / (scales[None] * gammas[:, None])[None]) ** 2
    # Within the radius the start alone covers; the first scale is one point, 1/2.
    log_counts = np.tensordot(logs, np.where(squares <= 1, 0, np.ceil(squares)), 1)
    log_counts[:, 0] = 0
    pairs = np.sqrt(2 * (log_counts[:, 1:] + log_counts[:, :-1]))
    links = (scales[1:] + scales[:-1])[None] * pairs
    totals = (scales[1:] / np.sqrt(n))[None] + np.cumsum(links, axis=1) / n
    return totals.min(axis=1)
