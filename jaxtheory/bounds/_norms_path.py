"""The margin bound of ReLU networks of a given path norm."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import ArrayLike, Integer, Num

from jaxtheory._types import Bound, Params
from jaxtheory.bounds._ledger import BY_CONSTRUCTION
from jaxtheory.bounds._norms_layers import (
    ARCHITECTURE,
    NETWORK,
    read_problem,
    unit_scale,
)
from jaxtheory.bounds._norms_margins import grid_up, margin_bound


def path_norm(
    params: Params,
    x: Num[ArrayLike, "n ..."],
    y: Integer[ArrayLike, " n"],
    *,
    layers: Sequence[str],
    delta: float,
    quantile: float | None = None,
) -> Bound:
    r"""Margin bound on the error of a dense ReLU network, from its l1 path norm.

    With ``phi`` the sum over all paths from an input (or a bias) to an output of the
    products of ``|weights|``, ``H`` hidden layers, ``d`` inputs (the constant 1 of the
    biases among them), ``k`` outputs and ``X_j`` the values of input ``j``, the bound
    is that of `margin_distribution` with

    .. math:: R \le \frac{2 \phi \max_j |X_j|_2}{n}
        \sqrt{2 \ln(2^{H + 1} d k)} .

    It does not depend on the widths. ``phi`` is rounded up to the grid ``2^(q/8)``,
    whose choice is paid for.

    The constants are derived, not quoted: (1) a ReLU network can be rescaled so that
    the weights into every hidden unit have l1 norm 1 and those into all outputs
    together ``phi``, which changes no output; (2) with ``B = phi max_j |X_j|``, the
    mean over signs of ``exp(t sup)`` is at most ``k`` (the outputs), times 2 for the
    contraction of each hidden layer (Ledoux-Talagrand), times ``2 d exp(t^2 B^2 / 2)``
    for the inputs, and the best ``t`` gives the root; (3) a margin is
    ``sqrt(2)``-Lipschitz in the outputs, and Maurer's contraction costs another
    ``sqrt(2)``. The theorem of 2015 has ``2^H`` outside of the root.

    Args:
        params: Flax parameters of dense layers, as of `models.MLP` with the standard
            parametrisation.
        x: The training inputs ``[n, ...]``, flattened.
        y: Their class indices.
        layers: Names of all layers in `params`, from input to output.
        delta: As of `margin_distribution`.
        quantile: As of `margin_distribution`.

    Returns:
        The bound on the probability of error, on the host in float64, of the network
        that these layers make with ReLU between them, whatever model they are from. It
        is a certificate, and vacuous for nearly every trained network.

    Raises:
        ValueError: `layers` are not dense, not all, do not feed each other, or do not
            fit `x` and `y`; a value is not finite, traced or out of range.

    Example:
        >>> import numpy as np
        >>> y = np.arange(20_000) % 2
        >>> params = {"output": {"kernel": np.eye(2)}}
        >>> bound = path_norm(
        ...     params, np.eye(2)[y] - 0.5, y, layers=("output",), delta=0.05
        ... )
        >>> f"{bound.value:.2f} {bound.certificate}"
        '0.10 True'

    References:
        Neyshabur, Tomioka & Srebro 2015, arXiv:1503.00036, theorem 1 and corollary 2;
        Golowich, Rakhlin & Shamir 2018, arXiv:1712.06541, section 3 (depth under the
        root); Maurer 2016, arXiv:1605.00251, corollary 1.
    """
    found, inputs, margins = read_problem(params, x, y, layers)
    n, k = len(inputs), found[-1].kernel.shape[1]
    paths = np.ones(inputs.shape[1])
    if any(layer.bias is not None for layer in found):
        inputs = np.concatenate([inputs, np.ones((n, 1))], axis=1)
    nats = len(found) * np.log(2) + np.log(inputs.shape[1] * k)
    # What overflows here is an infinite bound; no square may underflow.
    with np.errstate(over="ignore", invalid="ignore"):
        for kernel, bias in found:
            paths = paths @ np.abs(kernel) + (0 if bias is None else np.abs(bias))
        phi, price = grid_up(float(paths.sum()))
        scaled, size = unit_scale(inputs)
        largest = size * np.sqrt(np.square(scaled).sum(axis=0).max())
        rademacher = 2 * phi * largest / n * np.sqrt(2 * nats)
    return margin_bound(
        margins,
        lambda gammas: rademacher / gammas,
        price=price,
        delta=delta,
        quantile=quantile,
        assumptions=(
            ARCHITECTURE,
            (BY_CONSTRUCTION, f"{NETWORK}ReLU"),
            (BY_CONSTRUCTION, f"the path norm {phi:.3g} is on a grid fixed before"),
        ),
    )
