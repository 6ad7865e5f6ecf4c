"""Which directions of its input a model looks at: AGOP, feature ansatz, overlaps."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Real

from jaxtheory._types import ApplyFn
from jaxtheory.batching import (
    check_batch_size,
    check_examples,
    check_number,
    num_shards,
    sum_examples,
)
from jaxtheory.kernels._checks import check_real
from jaxtheory.kernels._compare import _normalise, _single, check_kernel
from jaxtheory.kernels._regression import eigendecomposition, rounding_level


def agop(
    apply_fn: ApplyFn,
    params: Any,
    x: Float[ArrayLike, "n ..."],
    *,
    batch_size: int | None = None,
) -> Float[Array, "d d"]:
    r"""Compute the average gradient outer product of a model in its input.

    ``M = 1/n sum_i sum_k g_ik g_ik^T`` with the gradient ``g_ik`` of output ``k`` at
    example ``i`` with respect to that example: a *mean* over examples, a *sum* over
    outputs. Its top eigenvectors are the directions to which the model responds.

    At a hidden layer it is the same with the rest of the network as the model and that
    layer's activations as the input: ``agop(head, params, activations)``.

    Compiled once for each `apply_fn` and shapes.

    Args:
        apply_fn: The model, ``apply_fn(params, x[n, ...]) -> outputs[n, ...]``, with
            examples independent of each other.
        params: Its parameters, any pytree.
        x: Inputs or activations; ``d`` is the number of entries of one.
        batch_size: Examples whose gradients are held at once; need not divide ``n``.

    Returns:
        The matrix, symmetric and positive semidefinite.

    Raises:
        ValueError: `x` is no floating-point array with examples, the outputs are no
            floating-point array with one row an example, or `batch_size` is not
            positive.

    Memory:
        Gradients ``[b, k, d]`` and the result. Sharded examples stay where they are,
        and cost one all-reduce.

    Example:
        >>> import jax.numpy as jnp
        >>> def product(params, x):
        ...     return params * x[:, 0] * x[:, 1]
        >>> x = jnp.array([[1.0, 2.0, 5.0], [1.0, 0.0, 7.0]])
        >>> agop(product, 1.0, x).tolist()
        [[2.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]

    References:
        Radhakrishnan, Beaglehole, Pandit, Belkin, arXiv:2212.13881, section 2.
    """
    check_batch_size(batch_size)
    n = check_examples(x=x)
    dtype = jnp.result_type(x)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            "`x` must be floating-point to be differentiated in, but has dtype "
            f"{dtype}. Cast it, or start from the first layer that is continuous."
        )
    return _agop(apply_fn, params, x, batch_size, num_shards(x)) / n


@partial(jax.jit, static_argnums=(0, 3, 4))
def _agop(apply_fn, params, x, batch_size, lanes):
    """The sum over examples."""
    outputs = jax.eval_shape(apply_fn, params, x)
    shape = getattr(outputs, "shape", ())
    if shape[:1] != x.shape[:1] or not jnp.issubdtype(outputs.dtype, jnp.floating):
        was = f"an array of shape {shape}, {outputs.dtype}" if shape else f"{outputs}"
        raise ValueError(
            "`apply_fn` must return one floating-point row for each of "
            f"{x.shape[0]} examples, but returned {was}."
        )
    num_outputs, dim = outputs.size // x.shape[0], x.size // x.shape[0]
    jacobian = jax.jacrev if num_outputs <= dim else jax.jacfwd

    def one(x):
        gradients = jacobian(lambda x: jnp.ravel(apply_fn(params, x[None])))(x)
        return jnp.reshape(gradients, (num_outputs, dim))

    def outer(chunk, weights):
        gradients = jax.vmap(one)(chunk)
        return jnp.einsum(
            "nka,nkb,n->ab",
            gradients,
            gradients,
            weights,
            precision="highest",
            preferred_element_type=jnp.result_type(jnp.float32, gradients),
        )

    return sum_examples(outer, x, batch_size=batch_size, lanes=lanes)


def neural_feature_ansatz(
    weight: Float[Array, "k d"],
    agop: Float[Array, "d d"],
    *,
    power: Real[ArrayLike, ""] = 0.5,
    centred: bool = False,
) -> Float[Array, ""]:
    r"""Compute how well a layer's weights agree with the directions it should see.

    The correlation over all entries of the neural feature matrix ``W^T W`` and the
    power ``M^power`` of the AGOP ``M`` at the input of that layer. Both conventions are
    in use, for both choices: the power 1/2 and the power 1, and cosine similarity ``<A,
    B>_F / (|A|_F |B|_F)`` or, with `centred`, the Pearson correlation, which subtracts
    from ``A`` and ``B`` the mean of their entries first. Say which with every number.

    Args:
        weight: Weights of a layer as they act, one row a unit: of a Flax layer the
            transposed kernel.
        agop: The `agop` of the network with respect to the input of that layer, on
            training examples.
        power: Positive power of the AGOP; negative eigenvalues, which are rounding
            errors, count as zero.
        centred: Whether the mean entry is subtracted.

    Returns:
        The correlation, in ``[-1, 1]``; ``[0, 1]`` if not centred. NaN, because
        undefined, if a matrix is zero (constant, if centred) or not finite.

    Raises:
        ValueError: `agop` is not square, `weight` has another number of columns, or
            `power` is not positive.

    Memory:
        A few matrices ``[d, d]``; ``O(d^3)`` time.

    Example:
        >>> import jax.numpy as jnp
        >>> weight = jnp.array([[2.0, 0.0], [0.0, 1.0]])
        >>> matrix = jnp.diag(jnp.array([16.0, 1.0]))
        >>> round(float(neural_feature_ansatz(weight, matrix, power=0.5)), 4)
        1.0
        >>> round(float(neural_feature_ansatz(weight, matrix, power=1)), 4)
        0.9834

    References:
        Radhakrishnan, Beaglehole, Pandit, Belkin, arXiv:2212.13881 (the ansatz);
        Beaglehole et al., arXiv:2402.05271 (correlation and powers).
    """
    check_kernel(agop)
    check_number("power", power, lambda p: 0 < p < float("inf"), "positive and finite")
    check_real(weight=weight)
    shape = jnp.shape(weight)
    if 0 in shape or len(shape) != 2 or shape[1:] != jnp.shape(agop)[1:]:
        raise ValueError(
            "`weight` must be [k, d] for the `agop` [d, d], but has shape "
            f"{shape} against {jnp.shape(agop)}. Pass the transposed kernel of a Flax "
            "layer, and the `agop` at the input of that layer."
        )
    weight = _normalise(_single(weight))
    features = jnp.matmul(weight.T, weight, precision="highest")
    matrix = _matrix_power(_normalise(_single(agop)), power)
    if centred:
        features, matrix = features - jnp.mean(features), matrix - jnp.mean(matrix)
    return jnp.sum(_normalise(features) * _normalise(matrix))


def _matrix_power(matrix, power):
    """A real power of a positive semidefinite matrix."""
    values, vectors = eigendecomposition(matrix)
    # A small power would make much of eigenvalues that are rounding.
    values = jnp.where(values > rounding_level(values), values, 0) ** power
    return jnp.matmul(vectors * values[None], vectors.T, precision="highest")


def subspace_overlap(
    subspace: Float[Array, "d k"], reference: Float[Array, "d r"]
) -> Float[Array, ""]:
    r"""Compute how much of a reference subspace another one contains.

    ``|U^T V|_F^2 / r`` with orthonormal bases ``U`` and ``V`` of the column spaces of
    `subspace` and `reference` and ``r`` the dimension of the latter: the mean squared
    cosine of the principal angles, 1 if `reference` is contained, and ``k / d`` on
    average for a random subspace. Columns need be neither orthogonal nor independent:
    directions below rounding are dropped.

    Args:
        subspace: Spanning vectors as columns, for example the top eigenvectors of
            `agop` or the first-layer weights.
        reference: Spanning vectors of the subspace to be found, as columns.

    Returns:
        The overlap, in ``[0, 1]``. NaN, because undefined, if `reference` is zero or
        anything is not finite; 0 if only `subspace` is zero.

    Raises:
        ValueError: The arguments are not matrices with the same number of rows.

    Example:
        >>> import jax.numpy as jnp
        >>> axes = jnp.eye(3)
        >>> overlap = subspace_overlap(axes[:, :1] + axes[:, 1:2], axes[:, :1])
        >>> round(float(overlap), 4)
        0.5

    References:
        Damian, Lee, Soltanolkotabi, arXiv:2206.15144 (learning a subspace); Bjorck
        and Golub, Math. Comp. 27 (1973) (principal angles).
    """
    for name, vectors in (("subspace", subspace), ("reference", reference)):
        check_real(**{name: vectors})
        if jnp.ndim(vectors) != 2 or 0 in jnp.shape(vectors):
            raise ValueError(
                f"`{name}` must be a matrix [d, r] of column vectors, but has shape "
                f"{jnp.shape(vectors)}. Use `{name}[:, None]` for one vector."
            )
    _check_dimension(subspace=subspace, reference=reference)
    found, _ = _orthonormal(_single(subspace))
    basis, rank = _orthonormal(_single(reference))
    product = jnp.matmul(found.T, basis, precision="highest")
    return jnp.sum(product**2) / rank


def _orthonormal(vectors):
    """Orthonormal columns of the same span, zero where it ends; its dimension."""
    finite = jnp.all(jnp.isfinite(vectors))
    largest = jnp.max(jnp.abs(vectors))
    scaled = jnp.where(finite, vectors / jnp.where(largest > 0, largest, 1), 0)
    basis, values, _ = jnp.linalg.svd(scaled, full_matrices=False)
    rounding = max(vectors.shape) * jnp.finfo(vectors.dtype).eps
    kept = values > rounding * values[0]
    return jnp.where(finite, basis * kept[None], jnp.nan), jnp.sum(kept)


def direction_overlap(
    vector: Float[Array, " d"], direction: Float[Array, " d"]
) -> Float[Array, ""]:
    r"""Compute the overlap ``|<w, u>| / (|w| |u|)`` of two directions, up to sign.

    The cosine itself; `subspace_overlap` of single vectors is its square. A random
    direction gives about ``sqrt(2 / (pi d))``.

    Args:
        vector: A vector, for example a hidden unit's weights.
        direction: The direction to be found.

    Returns:
        The overlap, in ``[0, 1]``. NaN, because undefined, if a vector is zero or not
        finite.

    Raises:
        ValueError: The arguments are not vectors of the same length.

    Example:
        >>> import jax.numpy as jnp
        >>> overlap = direction_overlap(jnp.array([-3.0, 4.0]), jnp.array([2.0, 0.0]))
        >>> round(float(overlap), 4)
        0.6

    References:
        Ben Arous, Gheissari, Jagannath, arXiv:2003.10409 (the order parameter of
        single-index models).
    """
    check_real(vector=vector, direction=direction)
    if jnp.ndim(vector) != 1 or jnp.ndim(direction) != 1:
        raise ValueError(
            "`vector` and `direction` must be vectors [d], but have shapes "
            f"{jnp.shape(vector)} and {jnp.shape(direction)}. Use `subspace_overlap` "
            "for several, `jax.vmap` for each."
        )
    _check_dimension(vector=vector, direction=direction)
    vector, direction = _normalise(_single(vector)), _normalise(_single(direction))
    return jnp.abs(jnp.vdot(vector, direction, precision="highest"))


def _check_dimension(**vectors):
    """Raise unless two named arrays of vectors live in one space, on axis 0."""
    (name1, first), (name2, second) = vectors.items()
    if jnp.shape(first)[0] != jnp.shape(second)[0]:
        raise ValueError(
            f"`{name2}` must live in the space of `{name1}`, of dimension "
            f"{jnp.shape(first)[0]} (axis 0), but has shape {jnp.shape(second)}."
        )
