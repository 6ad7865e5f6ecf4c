"""Spectral density by stochastic Lanczos quadrature."""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, ArrayLike, Float, Int, Real

from jaxtheory._types import Estimate, KeyArray
from jaxtheory.batching import check_count, check_key, check_number
from jaxtheory.linalg._checks import check_reorthogonalise, check_symmetric
from jaxtheory.linalg._flat import flatten_operator
from jaxtheory.linalg._lanczos import dense, lanczos
from jaxtheory.linalg._operator import dimension, join_operator, split_operator
from jaxtheory.linalg._probes import estimate, signs
from jaxtheory.linalg._watch import leaf_of


class SpectralDensity(NamedTuple):
    """Where the eigenvalues of an operator lie, seen by ``s`` random probes.

    Attributes:
        nodes: Ritz values of each probe, ascending, ``[s, m]``.
        weights: Their shares of the spectrum, not negative; each row sums to 1.
        dimension: Number ``p`` of eigenvalues, which the shares are shares of.
        asymmetry: For each probe, what `Eigenpairs.asymmetry` says, ``[s]``: rounding
            where the operator is symmetric.
        nonfinite_step: For each probe, the first iteration whose product was not
            finite, -1 if none, ``[s]``.
        nonfinite_leaf: Which leaf of that product it was, see `Eigenpairs`, ``[s]``.
    """

    nodes: Float[Array, "s m"]
    weights: Float[Array, "s m"]
    dimension: Int[Array, ""] | int
    asymmetry: Float[Array, " s"]
    nonfinite_step: Int[Array, " s"]
    nonfinite_leaf: Int[Array, " s"]

    def density(
        self, grid: Float[Array, " g"], *, width: Real[ArrayLike, ""]
    ) -> Estimate:
        """Evaluate the density of eigenvalues, smoothed by a Gaussian.

        Args:
            grid: Where to evaluate it, ``[g]``, in the units of the eigenvalues.
            width: Standard deviation of the Gaussian, in the same units. The peak of a
                single eigenvalue has the height ``1 / (p width sqrt(2 pi))``.

        Returns:
            The density at each point of the grid, which integrates to 1 over the real
            line, averaged over probes, with its standard error; both ``[g]``.

        Raises:
            ValueError: `width` is not a positive number, or `grid` no vector.
        """
        return _smooth(self.nodes, self.weights, grid, width)

    def log_density(
        self,
        grid: Float[Array, " g"],
        *,
        width: Real[ArrayLike, ""],
        sign: Literal["both", "positive", "negative"] = "both",
    ) -> Estimate:
        """Evaluate the density of ``log10 |eigenvalue|``, smoothed by a Gaussian.

        For spectra with heavy tails, which a density on a linear axis shows as one peak
        at zero. The two signs add up to both. Eigenvalues that are exactly zero are
        nowhere on this axis; those that are zero but for rounding lie below about
        ``log10(eps max |eigenvalue|)``, where the places mean nothing.

        ``m`` iterations see whatever crowds around zero as one or two nodes, whose
        place and sign are the iterations' and not the operator's: they move towards
        zero as `num_iterations` grows, and the standard error over probes knows nothing
        of it. Believe what stays where it is when the iterations are doubled.

        Args:
            grid: Where to evaluate it, ``[g]``: decimal logarithms of sizes of
                eigenvalues.
            width: Standard deviation of the Gaussian, in decades.
            sign: Which eigenvalues to show.

        Returns:
            The density per decade at each point of the grid, averaged over probes, with
            its standard error; both ``[g]``. It integrates to the share of eigenvalues
            of that sign, zeros left out.

        Raises:
            ValueError: `width` is not a positive number, `grid` no vector, or `sign`
                another word.
        """
        if sign not in ("both", "positive", "negative"):
            raise ValueError(
                f"`sign` must be 'both', 'positive' or 'negative', but was {sign!r}."
            )
        sides = {"positive": self.nodes > 0, "negative": self.nodes < 0}
        shown = sides.get(sign, self.nodes != 0)
        sizes = jnp.log10(jnp.where(shown, jnp.abs(self.nodes), 1))
        # Not a number is not zero: it stays, and shows.
        weights = jnp.where(shown | jnp.isnan(self.nodes), self.weights, 0)
        return _smooth(sizes, weights, grid, width)

    def moments(self, num: int) -> Estimate:
        """Estimate the first moments of the spectrum, means of powers of eigenvalues.

        Args:
            num: How many, at most ``2 m - 1``: up to there the quadrature of a probe is
                exact, and the only error is that of the average over probes.

        Returns:
            ``(1/p) sum_i lambda_i^k`` for ``k = 1 ... num``, averaged over probes, with
            its standard error; both ``[num]``.

        Raises:
            ValueError: `num` is no integer from 1 to ``2 m - 1``.
        """
        num, most = check_count(num=num), 2 * self.nodes.shape[1] - 1
        if num > most:
            raise ValueError(
                f"`num` must be at most {most}, twice the iterations less one, but was "
                f"{num}. Raise `num_iterations`."
            )
        powers = jnp.arange(1, num + 1)[:, None, None]
        means = self.weights[None] * self.nodes[None] ** powers
        return estimate(jnp.sum(means, axis=-1))

    def trace_of(self, function: Callable[[Array], Array]) -> Estimate:
        """Estimate the trace of a function of the operator, ``sum_i f(lambda_i)``.

        Args:
            function: ``f``, elementwise; or several at once, which return
                ``[..., s, m]``.

        Returns:
            The sum over all ``p`` eigenvalues (no mean), averaged over probes, with
            its standard error; both ``[...]``.

        Raises:
            ValueError: `function` returns another shape.
        """
        values = function(self.nodes)
        if jnp.shape(values)[-2:] != self.nodes.shape:
            raise ValueError(
                "`function` must return a value for every node, [..., s, m] for nodes "
                f"[s, m] = {list(self.nodes.shape)}, but returned the shape "
                f"{jnp.shape(values)}. Apply it entry by entry."
            )
        means = jnp.einsum("...sm,sm->...s", values, self.weights, precision="highest")
        return estimate(self.dimension * means)


def spectral_density(
    operator: lx.AbstractLinearOperator,
    *,
    key: KeyArray,
    num_probes: int = 16,
    num_iterations: int | None = None,
    reorthogonalise: Literal["full", "none"] = "full",
) -> SpectralDensity:
    r"""Estimate the density of eigenvalues of a symmetric operator.

    Stochastic Lanczos quadrature. Lanczos, started from a random vector of signs,
    gives the nodes :math:`\theta_{ij}` (eigenvalues of the tridiagonal matrix) and
    weights :math:`\tau_{ij}` (squared first entries of its eigenvectors) of a Gauss
    quadrature, and

    .. math:: \frac{1}{p} \operatorname{tr} f(A) \approx
        \frac{1}{s} \sum_{i=1}^{s} \sum_{j=1}^{m} \tau_{ij} f(\theta_{ij})

    The average over probes is without bias for polynomials ``f`` of degree up to
    ``2 m - 1``; the standard errors are those of the average over probes and say
    nothing of what ``m`` iterations cannot resolve: raise `num_iterations` until
    nothing moves by more than them.

    With the same key, `trace` sees the same probes: ``.trace_of(lambda x: x)`` equals
    it to rounding, whatever ``m``.

    Args:
        operator: Symmetric lineax operator on any pytree.
        key: Probes and restarts.
        num_probes: Number ``s >= 2`` of probes, one after the other.
        num_iterations: Number ``m`` of Lanczos iterations for each, one product each;
            by default ``min(p, 64)``.
        reorthogonalise: As for `lanczos`. ``"none"`` stores no Lanczos vectors; its
            copies of eigenvalues share the weight of one, so that densities and traces
            stay right, but converge more slowly in ``m``.

    Returns:
        Nodes and weights; ``.density(grid, width=...)`` and ``.log_density`` smooth
        them, ``.moments(num)`` and ``.trace_of(function)`` sum over the eigenvalues.
        NaN when a product is not finite; `nonfinite_step` and `nonfinite_leaf` say
        which.

    Raises:
        ValueError: Fewer than two probes, `num_iterations` is not between 1 and ``p``,
            the operator is not square or not tagged as symmetric, `key` is no typed
            key, or `reorthogonalise` is another word.

    Memory:
        ``m p`` numbers (none: nine vectors), and one product at a time; ``s m``
        products.

    Example:
        >>> import jax, jax.numpy as jnp, lineax as lx
        >>> op = lx.MatrixLinearOperator(jnp.diag(jnp.arange(4.0)), lx.symmetric_tag)
        >>> spectrum = spectral_density(op, key=jax.random.key(0), num_probes=4)
        >>> spectrum.nodes.shape
        (4, 4)
        >>> round(float(spectrum.trace_of(lambda x: x**2).value), 4)
        14.0

    References:
        Ubaru, Chen & Saad, SIAM J. Matrix Anal. Appl. 38 (2017); Lin, Saad & Yang,
        arXiv:1308.5467, section 3.2 (density); Ghorbani, Krishnan & Xiao,
        arXiv:1901.10159 (of network Hessians).
    """
    check_key(key)
    p = dimension(operator)
    check_symmetric(operator)
    check_reorthogonalise(reorthogonalise)
    num_probes = check_count(at_least=2, num_probes=num_probes)
    if num_iterations is None:
        num_iterations = min(p, 64)
    num_iterations = check_count(num_iterations=num_iterations)
    if num_iterations > p:
        raise ValueError(
            f"`num_iterations` must be at most the operator's dimension {p}, but was "
            f"{num_iterations}."
        )
    arrays, rest = split_operator(operator)
    static = (rest, num_probes, num_iterations, reorthogonalise)
    nodes, weights, *seen = _quadratures(arrays, key, *static)
    return SpectralDensity(nodes, weights, p, *seen)


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _quadratures(arrays, key, rest, num_probes, num_iterations, reorthogonalise):
    """Nodes and weights of each probe's Gauss quadrature, and what Lanczos met."""
    operator = join_operator(arrays, rest)
    product, _, zeros = flatten_operator(operator)

    def quadrature(index):
        start, restart_key = signs(key, index, zeros)
        krylov = lanczos(
            product,
            start,
            num_iterations=num_iterations,
            key=restart_key,
            reorthogonalise=reorthogonalise,
        )
        nodes, vectors = jnp.linalg.eigh(dense(krylov))
        leaf = leaf_of(krylov.nonfinite_index, operator.in_structure())
        seen = krylov.asymmetry, krylov.nonfinite_step, leaf
        return nodes, vectors[0] ** 2, *seen

    return jax.lax.map(quadrature, jnp.arange(num_probes))


def _smooth(places, weights, grid, width):
    """Gaussian peaks at `places`, evaluated on the grid and averaged over probes."""
    check_number("width", width, lambda w: 0 < w < jnp.inf, "a positive number")
    if len(jnp.shape(grid)) != 1:
        raise ValueError(
            f"`grid` must be a vector [g], but has shape {jnp.shape(grid)}."
        )
    grid = jnp.asarray(grid, places.dtype)

    def smooth(places, weights):
        distances = (grid[:, None] - places[None, :]) / width
        peaks = jnp.exp(-(distances**2) / 2) / (width * jnp.sqrt(2 * jnp.pi))
        return jnp.matmul(peaks, weights, precision="highest")

    return estimate(jax.vmap(smooth)(places, weights).T)
