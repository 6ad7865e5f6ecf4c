"""Eigenvalues of kernels as integral operators: from a sample, on cubes and circles."""

from typing import NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float
from scipy.linalg import eigh
from scipy.special import comb

from jaxtheory.kernels._checks import host_array


class MercerSpectrum(NamedTuple):
    """Eigenvalues of a kernel as an integral operator, each given once.

    Attributes:
        eigenvalues: ``lambda_i`` in ``K(x, x') = sum_i lambda_i phi_i(x) phi_i(x')``
            with ``E[phi_i phi_j] = delta_ij`` over inputs. ``[p]``.
        multiplicities: How many eigenfunctions share each. ``[p]``.
    """

    eigenvalues: Float[np.ndarray, " p"]
    multiplicities: Float[np.ndarray, " p"]


class TargetSpectrum(NamedTuple):
    """Eigenvalues of a kernel and the coefficients of targets, from a sample.

    Attributes:
        eigenvalues: Estimates of ``lambda_i``, largest first. ``[N]``.
        coefficients: Those of ``v_i`` in ``f(x) = sum_i v_i phi_i(x)``, for each
            output. ``[N, k]``.
    """

    eigenvalues: Float[np.ndarray, " N"]
    coefficients: Float[np.ndarray, "N k"]


def target_spectrum(
    kernel: Float[ArrayLike, "N N"], targets: Float[ArrayLike, "N k"]
) -> TargetSpectrum:
    r"""Estimate a kernel's eigenvalues and a target's coefficients from a sample.

    With ``K = sum_i e_i u_i u_i^T`` the Gram matrix of ``N`` random inputs,
    ``lambda_i ~ e_i / N`` and ``v_i ~ u_i^T y / sqrt(N)``: what `learning_curve` takes,
    for training sets of at most some ``N / 10``, from the same distribution. (With
    noise and the kernel of a network, the predicted error was 10 to 40 % too high at
    ``N / 5``; where ``N / 2`` inputs give another curve, the sample is too small.) The
    sample is then the whole world, and the error that over all of it, training points
    included: noise in the targets counts as part of the function, and eigenvalues that
    need more than ``N`` examples to be seen are not there.

    Negative eigenvalues, which a positive semidefinite kernel has from rounding alone,
    are set to zero. Those of a float32 kernel are noise below ``1e-7`` of the largest.

    Computed on the host in float64.

    Args:
        kernel: Gram matrix of the sample.
        targets: Noiseless targets.

    Returns:
        Eigenvalues and coefficients: ``learning_curve(*target_spectrum(K, y), ...)``.

    Raises:
        ValueError: Shapes do not fit, an entry is not finite, or something is traced.

    Memory:
        Three matrices ``[N, N]``; ``O(N^3)`` time.

    Example:
        >>> import numpy as np
        >>> from jaxtheory import kernels
        >>> kernel, y = np.diag([2.0, 4.0]), np.array([[1.0], [0.0]])
        >>> spectrum = kernels.target_spectrum(kernel, y)
        >>> spectrum.eigenvalues.tolist()
        [2.0, 1.0]
        >>> np.abs(spectrum.coefficients[:, 0]).round(6).tolist()
        [0.0, 0.707107]

    References:
        Bordelon, Canatar, Pehlevan, arXiv:2002.02561, section 3.1 (a data set as its
        own distribution); Rosasco, Belkin, De Vito, JMLR 11 (2010) (convergence).
    """
    gram, y = host_array("kernel", kernel), host_array("targets", targets)
    n = len(gram) if gram.ndim else 0
    if gram.shape != (n, n) or n == 0:
        raise ValueError(
            f"`kernel` must be a square matrix [N, N], but has shape {gram.shape}."
        )
    if y.ndim != 2 or len(y) != n:
        raise ValueError(
            f"`targets` must be [N, k] with N = {n} like `kernel`, but has shape "
            f"{y.shape}. Use `targets[:, None]` for one output."
        )
    eigenvalues, vectors = eigh((gram + gram.T) / 2)
    return TargetSpectrum(
        np.maximum(eigenvalues[::-1] / n, 0.0), vectors.T[::-1] @ y / np.sqrt(n)
    )


def hypercube_spectrum(kernel: Float[ArrayLike, " m"]) -> MercerSpectrum:
    r"""Compute the eigenvalues of a rotation-invariant kernel on ``{-1, 1}^d``.

    The eigenfunctions are the parities; those of ``j`` coordinates share the eigenvalue
    ``lambda_j = 2^-d sum_h K(h) C(d, h) P_j(h) / C(d, j)`` with the Krawtchouk
    polynomials ``P_j``, under the uniform distribution.

    Args:
        kernel: Its value at each Hamming distance ``h = 0, ..., d``: at inputs with
            cosine ``1 - 2 h / d``.

    Returns:
        ``d + 1`` eigenvalues, of ``j = 0, ..., d``, with multiplicities ``C(d, j)``.

    Raises:
        ValueError: Not a vector of at least 2 numbers, not finite, no positive
            semidefinite kernel, or not precise enough: of many dimensions the sum of
            the eigenvalues is checked to 1 %. (Kernels of networks in float64 had that
            precision up to 100 dimensions, in float32 up to 40.)

    Example:
        The linear kernel ``x.x' / d`` has the eigenvalue ``1 / d`` for each coordinate:

        >>> import numpy as np
        >>> from jaxtheory import kernels
        >>> spectrum = kernels.hypercube_spectrum(1 - 2 * np.arange(5) / 4)
        >>> spectrum.eigenvalues.tolist(), spectrum.multiplicities.tolist()
        ([0.0, 0.25, 0.0, 0.0, 0.0], [1.0, 4.0, 6.0, 4.0, 1.0])

    References:
        Yang and Salman, arXiv:1907.10599, section 3; Simon et al., arXiv:2110.03922.
    """
    values = _check_profile(kernel)
    d = len(values) - 1
    h = np.arange(d + 1)
    sizes = np.asarray(comb(d, h))
    eigenvalues = _check_semidefinite(_hypercube_weights(d) @ values, values)
    lost = abs(sizes @ eigenvalues - values[0])
    if not lost <= 0.01 * values[0]:
        raise ValueError(
            f"`kernel` must be precise enough for its {d} dimensions: its eigenvalues "
            "times their multiplicities, up to "
            f"{np.max(sizes):.0e}, should sum to kernel[0] = {values[0]:.4g}, but "
            f"rounding makes that {sizes @ eigenvalues:.4g}. Compute it in float64, or "
            "in fewer dimensions."
        )
    return MercerSpectrum(eigenvalues, sizes)


def _hypercube_weights(d):
    """What each distance counts for in each eigenvalue, from exact integers.

    ``C(d, h) P_j(h) / (C(d, j) 2^d) = P_h(j) / 2^d``, by the recursion of the
    polynomials in their degree; in floating point their sums cancel from ``d = 50`` on.
    """
    rows = [[1] * (d + 1), [d - 2 * j for j in range(d + 1)]]
    for h in range(1, d):
        rows.append([
            ((d - 2 * j) * rows[h][j] - (d - h + 1) * rows[h - 1][j]) // (h + 1)
            for j in range(d + 1)
        ])  # fmt: skip
    return np.array([[value / 2**d for value in row] for row in rows]).T


def circle_spectrum(kernel: Float[ArrayLike, " m"]) -> MercerSpectrum:
    r"""Compute the eigenvalues of a rotation-invariant kernel on points of a circle.

    The ``m`` points are equally spaced, and equally likely. The
    eigenfunctions are the constant and ``sqrt(2) cos`` and ``sqrt(2) sin`` of each
    frequency; ``lambda_j = (1 / m) sum_h K(h) cos(2 pi j h / m)``, under the uniform
    distribution.

    Args:
        kernel: Its value between a point and the one ``h = 0, ..., m - 1`` places on.

    Returns:
        ``m // 2 + 1`` eigenvalues, of frequencies ``j = 0, ..., m // 2``, with
        multiplicities 2 (1 for the constant, and for ``j = m / 2``).

    Raises:
        ValueError: Not a vector of at least 2 numbers, not finite, not symmetric
            (``kernel[h] = kernel[m - h]``), or no positive semidefinite kernel.

    Example:
        >>> import numpy as np
        >>> from jaxtheory import kernels
        >>> spectrum = kernels.circle_spectrum(np.cos(2 * np.pi * np.arange(4) / 4) + 1)
        >>> spectrum.eigenvalues.round(6).tolist(), spectrum.multiplicities.tolist()
        ([1.0, 0.5, 0.0], [1.0, 2.0, 1.0])

    References:
        Simon et al., arXiv:2110.03922, section 5.
    """
    values = _check_profile(kernel)
    m = len(values)
    error = np.max(np.abs(values - np.roll(values[::-1], 1)))
    if error > 1e-6 * np.max(np.abs(values)):
        raise ValueError(
            "`kernel` must be symmetric, kernel[h] = kernel[m - h], but is not. Pass "
            "one row of the Gram matrix of points in their order on the circle."
        )
    eigenvalues = np.fft.rfft(values).real / m
    j = np.arange(len(eigenvalues))
    multiplicities = np.where((j == 0) | (2 * j == m), 1.0, 2.0)
    return MercerSpectrum(_check_semidefinite(eigenvalues, values), multiplicities)


def _check_profile(kernel):
    """A kernel as a function of distance."""
    values = host_array("kernel", kernel)
    if values.ndim != 1 or values.size < 2:
        raise ValueError(
            "`kernel` must be a vector of its values at each distance, at least 2, but "
            f"has shape {values.shape}."
        )
    return values


def _check_semidefinite(eigenvalues, values):
    """The eigenvalues, with rounding errors below zero set to it."""
    # Of a kernel that was computed in single precision, too.
    if np.min(eigenvalues) < -1e-6 * np.max(np.abs(values)):
        raise ValueError(
            "`kernel` must be positive semidefinite, but has negative eigenvalues. "
            "Check that its values are in order of distance, from 0 on."
        )
    return np.maximum(eigenvalues, 0.0)
