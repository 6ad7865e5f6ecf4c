"""Hermite expansion of a link function, and its information exponent."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from jaxtheory.batching import check_number
from jaxtheory.data._checks import check_count


def hermite_coefficients(
    link: Callable[[Any], Any], *, max_degree: int = 8, num_nodes: int = 200
) -> Float[np.ndarray, " degrees"]:
    r"""Expand a function in orthonormal Hermite polynomials.

    :math:`c_j = E\, g(z) \mathrm{He}_j(z) / \sqrt{j!}` for standard normal :math:`z`,
    by Gauss-Hermite quadrature on the host in double precision. Exact for polynomials
    of degree below ``2 num_nodes - max_degree``; where the link has a kink errors fall
    like ``1 / num_nodes``, though coefficients that vanish by symmetry stay zero.

    Args:
        link: Elementwise function of an array, of NumPy or JAX.
        max_degree: Highest degree, below `num_nodes`.
        num_nodes: Number of nodes, at most 250 (beyond, weights underflow).

    Returns:
        Coefficients of degree 0 to `max_degree`.

    Raises:
        ValueError: A count is out of range, or `link` is not elementwise or not finite.

    Example:
        >>> coefficients = hermite_coefficients(lambda z: z**2, max_degree=3)
        >>> abs(coefficients).round(4).tolist()
        [1.0, 0.0, 1.4142, 0.0]

    References:
        O'Donnell, Analysis of Boolean Functions, section 11.2.
    """
    check_count(max_degree=max_degree, num_nodes=num_nodes)
    if not max_degree < num_nodes <= 250:
        raise ValueError(
            f"`num_nodes` must be above `max_degree` ({max_degree}) and at most 250, "
            f"but was {num_nodes}."
        )
    nodes, weights = np.polynomial.hermite_e.hermegauss(num_nodes)
    with jax.enable_x64(True):
        found = np.asarray(link(nodes))
    if np.iscomplexobj(found):
        raise ValueError(f"`link` must be real, but returned dtype {found.dtype}.")
    values = np.asarray(found, np.float64)
    if values.shape != nodes.shape:
        raise ValueError(
            "`link` must be elementwise, but of an array of shape "
            f"{nodes.shape} returned shape {values.shape}."
        )
    if not np.all(np.isfinite(values)):
        raise ValueError(
            f"`link` must be finite up to |z| = {nodes[-1]:.0f}, but is not."
        )
    polynomials = [np.ones_like(nodes), nodes]
    for j in range(1, max_degree):
        following = nodes * polynomials[j] - math.sqrt(j) * polynomials[j - 1]
        polynomials.append(following / math.sqrt(j + 1))
    return np.stack(polynomials) @ (weights * values) / math.sqrt(2 * math.pi)


def information_exponent(
    link: Callable[[Any], Any], *, max_degree: int = 8, tolerance: float = 1e-3
) -> int | None:
    r"""Find the first degree, beyond the constant, in a link's Hermite expansion.

    The smallest :math:`j \ge 1` with :math:`|c_j| > \text{tolerance} \cdot (E\,
    g(z)^2)^{1/2}`, see `hermite_coefficients`. A coefficient also has to be the same to
    half its size with 100 nodes as with 200: quadrature errors do not count.

    Args:
        link: Elementwise function of an array, of NumPy or JAX.
        max_degree: Highest degree to look at.
        tolerance: Size, relative to the link's root mean square, above which a
            coefficient counts as nonzero.

    Returns:
        The exponent, or None if no coefficient up to `max_degree` counts.

    Raises:
        ValueError: As `hermite_coefficients`, or `tolerance` is not positive.

    Example:
        >>> import numpy as np
        >>> information_exponent(lambda z: z**3 - 3 * z), information_exponent(np.abs)
        (3, 2)

    References:
        Ben Arous, Gheissari, Jagannath, arXiv:2003.10409, definition 1.2.
    """
    check_number("tolerance", tolerance, lambda t: 0 < t < 1, "between 0 and 1")
    expand = lambda g, degree, nodes: hermite_coefficients(
        g, max_degree=degree, num_nodes=nodes
    )
    squared = lambda z: np.asarray(link(z), np.float64) ** 2
    norm = math.sqrt(expand(squared, 1, 200)[0])
    fine, coarse = (expand(link, max_degree, nodes) for nodes in (200, 100))
    large = np.abs(fine) > tolerance * norm
    stable = np.abs(fine - coarse) < np.abs(fine) / 2
    found = [j for j in range(1, max_degree + 1) if large[j] and stable[j]]
    return found[0] if found else None
