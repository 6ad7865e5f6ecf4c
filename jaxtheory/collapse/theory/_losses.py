"""The losses that the theory knows by name, and the checks that its solvers share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Real
from scipy import special

from jaxtheory._types import LossFn
from jaxtheory.batching import check_number

Number: TypeAlias = int | float | np.number | Real[Array, ""]
Counts: TypeAlias = Sequence[int | float] | Real[ArrayLike, " n"]
Examples: TypeAlias = Sequence[int] | Real[ArrayLike, "n ..."]
LossName: TypeAlias = Literal["cross_entropy", "squared_error"]


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy of the softmax, with label smoothing or a focal factor.

    Per example ``-sum_j y_j (1 - p_j)^g log p_j``, with ``y`` the target distribution,
    mixed with the uniform one: ``(1 - s) y + s / K``.
    """

    label_smoothing: float = 0.0
    focusing: float = 0.0

    def target_vectors(self, targets: Any, num_outputs: int) -> Any:
        """Target distributions ``[n, k]``, smoothed."""
        smoothing = self.label_smoothing
        vectors = one_hot(targets, num_outputs)
        return (1 - smoothing) * vectors + smoothing / num_outputs

    def __call__(self, outputs: Any, targets: Any) -> Array:
        """The losses ``[n]`` of logits ``[n, k]``."""
        log_p = jax.nn.log_softmax(outputs)
        terms = self.target_vectors(targets, outputs.shape[1]) * log_p
        if self.focusing:
            terms = terms * (-jnp.expm1(log_p)) ** self.focusing
        return -jnp.sum(terms, axis=1)

    def conjugate(self, duals: Any, targets: Any) -> Float[np.ndarray, " n"]:
        """Convex conjugate ``sum_j v_j log v_j - m log m``, ``v = dual + y``.

        ``m`` is the mass of a target, 1 for a distribution. The domain is ``v >= 0``
        with the same mass, which the caller sees to; what rounding takes out of it is
        put back.
        """
        vectors = np.asarray(self.target_vectors(targets, duals.shape[1]))
        entropies = special.entr(np.maximum(vectors + duals, 0)).sum(axis=1)
        return -entropies + special.entr(vectors.sum(axis=1))

    def largest_scale(self, gradients: Any, targets: Any) -> float:
        """How far gradients may be scaled and stay in the domain of `conjugate`."""
        vectors = np.asarray(self.target_vectors(targets, gradients.shape[1]))
        falls = gradients < 0
        if not falls.any():
            return np.inf
        return float(np.min(vectors[falls] / -gradients[falls]))


@dataclass(frozen=True)
class SquaredError:
    """Half the squared distance ``||z - y||^2 / 2`` of outputs and target vectors."""

    def target_vectors(self, targets: Any, num_outputs: int) -> Any:
        """Target vectors ``[n, k]``."""
        return one_hot(targets, num_outputs)

    def __call__(self, outputs: Any, targets: Any) -> Array:
        """The losses ``[n]`` of outputs ``[n, k]``."""
        vectors = self.target_vectors(targets, outputs.shape[1])
        return jnp.sum(jnp.square(outputs - vectors), axis=1) / 2

    def conjugate(self, duals: Any, targets: Any) -> Float[np.ndarray, " n"]:
        """Convex conjugate ``||dual||^2 / 2 + dual . y``."""
        vectors = np.asarray(self.target_vectors(targets, duals.shape[1]))
        return np.sum(duals * (duals / 2 + vectors), axis=1)

    def largest_scale(self, gradients: Any, targets: Any) -> float:
        """How far gradients may be scaled: as far as one likes."""
        return np.inf


def one_hot(targets: Any, num_outputs: int) -> Any:
    """Unit vectors of integer targets; targets that are vectors stay as they are."""
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        if targets.ndim != 2:
            raise ValueError(
                "`targets` must be integers [n] or one vector for each example [n, k], "
                f"but have dtype {targets.dtype} and shape {targets.shape}."
            )
        return targets
    columns = np.arange(num_outputs)
    return (targets[:, None] == columns[None, :]).astype(float)


def resolve_loss(
    loss: LossName | LossFn, label_smoothing: Number = 0.0, focusing: Number = 0.0
) -> LossFn:
    """The function of a loss that is given by name or as a function.

    Args:
        loss: ``"cross_entropy"``, ``"squared_error"``, or ``loss_fn(outputs[n, k],
            targets[n, ...]) -> losses[n]``.
        label_smoothing: Weight of the uniform distribution in the targets.
        focusing: Exponent of the focal factor.

    Returns:
        The function, hashable by value where the loss has a name.

    Raises:
        ValueError: An unknown name, or options that do not belong to the loss.
    """
    must = "a number in [0, 1)"
    check_number("label_smoothing", label_smoothing, lambda s: 0 <= s < 1, must)
    check_number("focusing", focusing, lambda g: 0 <= g < np.inf, "a number >= 0")
    if loss == "cross_entropy":
        if label_smoothing and focusing:
            raise ValueError(
                "`label_smoothing` and `focusing` must not both be set: there is no "
                "agreed meaning of the two together. Pass a function as `loss`."
            )
        return CrossEntropy(float(label_smoothing), float(focusing))
    if label_smoothing or focusing:
        raise ValueError(
            "`label_smoothing` and `focusing` must be 0 unless `loss` is "
            "'cross_entropy': they are parts of it."
        )
    if loss == "squared_error":
        return SquaredError()
    if not callable(loss):
        raise ValueError(
            "`loss` must be 'cross_entropy', 'squared_error' or a function "
            f"`loss_fn(outputs, targets)`, but was {loss!r}."
        )
    return loss


def check_concrete(**arrays: Any) -> None:
    """Raise where an argument is traced: the theory is solved on the host.

    Args:
        **arrays: Pytrees; the keyword is the name that an error message uses.

    Raises:
        ValueError: One of them is traced.
    """
    for name, tree in arrays.items():
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree)):
            raise ValueError(
                f"`{name}` must be concrete, but is traced by a JAX transformation. "
                "It is needed on the host: close over it there, or make the whole call "
                "outside jit, vmap and grad."
            )


def check_decay(**named: Any) -> float:
    """Return the one named decay as a float; raise unless it is positive.

    Args:
        **named: The number; the keyword is the name that an error message uses.

    Returns:
        The number.

    Raises:
        ValueError: It is traced, not a number, or not positive and finite.
    """
    check_concrete(**named)
    ((name, value),) = named.items()
    check_number(name, value, lambda v: 0 < v < np.inf, "a positive, finite number")
    return float(value)


def check_class_counts(class_counts: Any) -> Float[np.ndarray, " k"]:
    """Return the examples of each class in float64; raise unless they make sense.

    Args:
        class_counts: One positive number for each of at least two classes.

    Returns:
        The counts.

    Raises:
        ValueError: They are traced, no vector of two or more, or not all positive.
    """
    check_concrete(class_counts=class_counts)
    counts = np.asarray(class_counts)
    if counts.ndim != 1 or counts.size < 2 or counts.dtype.kind not in "iuf":
        raise ValueError(
            "`class_counts` must be a vector of at least two numbers, the examples of "
            f"each class, but has shape {counts.shape} and dtype {counts.dtype}."
        )
    counts = counts.astype(np.float64)
    if not np.all((counts > 0) & np.isfinite(counts)):
        raise ValueError(
            "`class_counts` must be positive and finite, but "
            f"{np.sum(~((counts > 0) & np.isfinite(counts)))} of {counts.size} are "
            "not. Leave out classes without examples; of labels, counts are "
            "`jnp.bincount(labels)`."
        )
    return counts
