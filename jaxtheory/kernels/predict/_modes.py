"""What training has done to one eigendirection of the kernel, in closed form.

Trained from outputs ``f_0`` towards targets ``y``, a linear model has the coefficients
``V phi(lambda) V^T (y - f_0)`` after a time or a number of steps. The factor ``phi`` is
finite and exact also where ``lambda`` is zero: ``1 - exp`` and powers near 1 are never
formed and divided by it.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxtheory.kernels._regression import rounding_level

# Numbers of steps are below 2^31.
_BITS = 31


def flow_factor(
    eigenvalues: Float[Array, " n"], duration: Float[Array, ""]
) -> Float[Array, " n"]:
    """``phi = (1 - exp(-duration lambda)) / lambda``, also at 0 and at infinity.

    Args:
        eigenvalues: ``lambda``, those of the kernel; negative ones count as zero.
        duration: ``c t / n``; may be infinite.

    Returns:
        The factor: `duration` where ``lambda = 0``, or 0 where that is a direction not
        told from zero that would have been learnt by then (see `forget`).
    """
    positive = eigenvalues > 0
    safe = jnp.where(positive, eigenvalues, 1)
    factor = jnp.where(positive, -jnp.expm1(-duration * safe) / safe, duration)
    return forget(factor, eigenvalues, duration)


def descent_factor(
    eigenvalues: Float[Array, " n"],
    num_steps: Int[Array, ""],
    step: Float[Array, ""],
    momentum: Float[Array, ""],
    nesterov: bool,
) -> Float[Array, " n"]:
    """``phi`` of gradient descent with momentum, as `optax.sgd` defines it.

    With ``x = step lambda`` the coefficient ``s`` (in units of `step`) and its velocity
    ``u`` follow ``u' = b u + 1 - x s`` and ``s' = s + u'`` (Nesterov: ``s + (1 - x s) +
    b u'``). That affine map is raised to the power `num_steps` by repeated squaring,
    keeping what differs from the identity, so that slow modes lose no digits. Without
    momentum, ``phi = (1 - (1 - x)^num_steps) / lambda``.

    Args:
        eigenvalues: ``lambda``; negative ones count as zero.
        num_steps: How many steps.
        step: ``c eta / n`` with the learning rate ``eta``.
        momentum: ``b``.
        nesterov: Whether the momentum is Nesterov's.

    Returns:
        The factor; large or not finite where descent diverges.
    """
    x = step * jnp.maximum(eigenvalues, 0)
    b = momentum * jnp.ones_like(x)
    one = jnp.ones_like(x)
    velocity = [-x, b - 1]
    position = [-x * (1 + b), b * b] if nesterov else [-x, b]
    first = 1 + b if nesterov else one
    matrix = jnp.moveaxis(jnp.array([position, velocity]), 2, 0)
    offset = jnp.stack([first, one], axis=1)
    coefficient = step * _power((matrix, offset), num_steps)[1][:, 0]
    duration = step * num_steps.astype(step.dtype) / (1 - momentum)
    return forget(coefficient, eigenvalues, duration)


def _power(map_, exponent):
    """The affine map ``z -> z + B z + b``, as ``(B, b)``, applied `exponent` times."""

    def square(bit, carry):
        result, base = carry
        odd = (exponent >> bit) & 1 == 1
        longer = _compose(base, result)
        result = [jnp.where(odd, a, b) for a, b in zip(longer, result, strict=True)]
        # Squared no further than needed: what overflows unused has NaN derivatives.
        more = exponent >> bit > 1
        base = [jnp.where(more, part, 0) for part in base]
        return result, _compose(base, base)

    nothing = [jnp.zeros_like(part) for part in map_]
    return jax.lax.fori_loop(0, _BITS, square, (nothing, list(map_)))[0]


def _compose(second, first):
    """Two affine maps one after the other."""
    (matrix2, offset2), (matrix1, offset1) = second, first
    # Summed by hand: 2 x 2 products are no matter for a matrix unit's precision.
    product = jnp.sum(matrix2[:, :, :, None] * matrix1[:, None, :, :], axis=2)
    moved = jnp.sum(matrix2 * offset1[:, None, :], axis=2)
    return [matrix2 + matrix1 + product, offset2 + offset1 + moved]


def forget(
    factor: Float[Array, " n"],
    eigenvalues: Float[Array, " n"],
    duration: Float[Array, ""],
) -> Float[Array, " n"]:
    """The factor without the modes that are rounding, once they would matter.

    An eigenvalue not told from zero gives a factor that grows with time, in a direction
    in which the kernel's rounding errors are all there is. They are of the order
    ``duration * eps lambda_max``: while that is small the factor is right whatever the
    eigenvalue; later the direction is taken for one in which nothing is learnt.

    Args:
        factor: ``phi``.
        eigenvalues: ``lambda``.
        duration: Time over the time in which a mode of ``lambda = 1`` is learnt.

    Returns:
        The factor, 0 in those directions.
    """
    level = rounding_level(eigenvalues)
    gone = (eigenvalues <= level) & ~(duration * level < 1)
    return jnp.where(gone, 0, factor)
