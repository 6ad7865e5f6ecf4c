"""Minimisation on the host, down to the rounding of the gradient."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from scipy import integrate, optimize
from scipy.sparse import linalg

_MEMORY = 30  # pairs that L-BFGS remembers
_NEWTON_STEPS = 20


class Counted:
    """A function with its gradient and Hessian products, counting what it is asked.

    Args:
        value_and_grad: ``value_and_grad(flat) -> (value, gradient)``.
        hessian_product: ``hessian_product(flat, vector) -> product``.
    """

    def __init__(self, value_and_grad: Callable, hessian_product: Callable):
        self._value_and_grad = value_and_grad
        self._hessian_product = hessian_product
        self.count = 0

    def __call__(self, flat):
        """The value as a float and the gradient as a NumPy array."""
        self.count += 1
        value, gradient = self._value_and_grad(flat)
        return float(value), np.asarray(gradient)

    def product(self, flat, vector):
        """The Hessian at `flat` times a vector."""
        self.count += 1
        return np.asarray(self._hessian_product(flat, vector))


class _Hessian(linalg.LinearOperator):
    """The Hessian of a counted function at one point."""

    def __init__(self, function, flat):
        super().__init__(np.dtype(np.float64), (flat.size, flat.size))
        self.function, self.flat = function, flat

    def _matvec(self, x):
        return self.function.product(self.flat, x.ravel())


def quasi_newton(
    function: Counted,
    flat: Float[np.ndarray, " p"],
    tolerance: float,
    max_evaluations: int,
) -> Float[np.ndarray, " p"]:
    """Descend by L-BFGS until the gradient is small or rounding stops the search.

    Args:
        function: What to minimise.
        flat: Where to start.
        tolerance: Gradient norm that is small enough.
        max_evaluations: Gradients to spend.

    Returns:
        The last point.
    """
    options = {"maxcor": _MEMORY, "maxfun": max_evaluations, "maxiter": max_evaluations}
    options |= {"ftol": 0.0, "gtol": tolerance / flat.size**0.5}
    found = optimize.minimize(
        function, flat, jac=True, method="L-BFGS-B", options=options
    )
    return found.x


def gradient_flow(
    function: Counted,
    flat: Float[np.ndarray, " p"],
    tolerance: float,
    max_evaluations: int,
) -> Float[np.ndarray, " p"]:
    """Follow ``d flat / dt = -gradient`` until Newton's method can take over.

    Args:
        function: What to minimise.
        flat: Where to start.
        tolerance: Gradient norm that is small enough.
        max_evaluations: Gradients to spend.

    Returns:
        The last point.
    """
    velocity = lambda time, point: -function(point)[1]
    solver = integrate.LSODA(velocity, 0.0, flat, np.inf, rtol=1e-8, atol=1e-10)
    close = max(tolerance, 1e-8)
    while function.count < max_evaluations and solver.status == "running":
        solver.step()
        if np.linalg.norm(velocity(solver.t, solver.y)) < close:
            break
    return solver.y


def newton(
    function: Counted, flat: Float[np.ndarray, " p"], tolerance: float
) -> Float[np.ndarray, " p"]:
    """Newton steps by MINRES, each taken only if it lowers the gradient.

    The Hessian may be singular along directions in which the function does not change,
    as rotations of features: the right-hand side has no part there, and MINRES solves
    that. L-BFGS alone stops where the rounding of the value hides its slope, at the
    square root of what this reaches.

    Args:
        function: What to minimise.
        flat: Where to start, close to a minimum.
        tolerance: Gradient norm that is small enough; a thousandth of it is aimed at.

    Returns:
        The last point.
    """
    gradient = function(flat)[1]
    size = np.linalg.norm(gradient)
    for _ in range(_NEWTON_STEPS):
        # Far away a Newton step need not go down.
        if not 1e-3 * tolerance < size < 1e-3:
            break
        step, _ = linalg.minres(_Hessian(function, flat), -gradient, rtol=1e-8)
        new_gradient = function(flat + step)[1]
        new_size = np.linalg.norm(new_gradient)
        if not new_size < 0.9 * size:
            break
        flat, gradient, size = flat + step, new_gradient, new_size
    return flat
