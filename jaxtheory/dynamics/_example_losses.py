"""A measurement of the loss of each of some fixed examples."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Num, PyTree

from jaxtheory import batching
from jaxtheory._types import ApplyFn, KeyArray, LossFn, TrainState
from jaxtheory.batching import (
    check_batch_size,
    check_count,
    check_examples,
    check_function,
    check_key,
    map_examples,
)
from jaxtheory.dynamics._held import Held, check_known


def example_losses(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    x: PyTree[Num[ArrayLike, "n ..."]],
    y: PyTree[Num[ArrayLike, "n ..."]],
    *,
    num: int | None = None,
    key: KeyArray | None = None,
    batch_size: int | None = None,
) -> "ExampleLosses":
    r"""A measurement of the loss of each of some fixed examples.

    .. math:: \ell_i = \mathrm{loss}(f(\theta, x_i), y_i)

    unreduced, for the same examples in every record. Means of absolute differences of
    these vectors are the pseudo-metric :math:`\rho_S`; with `num`, over a random
    subsample, which estimates it without bias.

    Args:
        apply_fn: ``apply_fn(params, x) -> outputs[n, ...]``.
        loss_fn: ``loss_fn(outputs, targets) -> losses[n]``.
        x: Inputs ``[n, ...]``.
        y: Targets ``[n, ...]``.
        num: Number of examples, drawn once without replacement; None takes all.
        key: Random key of the draw; needed with `num` alone.
        batch_size: Examples at once; None takes all.

    Returns:
        ``measure(state) -> Float[Array, "num"]``; its ``indices`` say which examples of
        `x` these are, in increasing order. Measurements of the same functions and
        examples are equal and hashable.

    Raises:
        ValueError: `x` and `y` disagree on ``n``, `num` is not from 1 to ``n``, `key`
            is given without `num` or lacks with it; when called, the loss is not one
            number for each example.

    Memory:
        The examples are held, and are constants of the compiled program: some tens of
        MB are no harm.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from jaxtheory import dynamics
        >>> measure = dynamics.example_losses(
        ...     lambda w, x: x * w,
        ...     lambda out, y: (out - y) ** 2,
        ...     jnp.ones(3),
        ...     jnp.arange(3.0),
        ... )
        >>> measure(dynamics.init(optax.sgd(0.1), jnp.array(1.0))).tolist()
        [1.0, 0.0, 1.0]

    References:
        Dupuis, Deligiannidis and Simsekli, arXiv:2302.02766 (the pseudo-metric).
    """
    check_function("apply_fn", apply_fn)
    check_function("loss_fn", loss_fn)
    check_batch_size(batch_size)
    n = check_examples(x=x, y=y)
    indices = _draw(n, num, key=key)
    if num is not None:
        check_known(x=x, y=y)
        # On the host, where the same draw is recognised by its contents.
        x, y = jax.tree.map(lambda a: np.asarray(a)[indices], (x, y))
    return ExampleLosses(apply_fn, loss_fn, Held((x, y)), batch_size, indices)


@dataclasses.dataclass(frozen=True)
class ExampleLosses:
    """What `example_losses` returns.

    Attributes:
        apply_fn: The model.
        loss_fn: The loss.
        data: The examples that are measured, a pair of inputs and targets.
        batch_size: Examples at once.
        indices: Which examples they are.
    """

    apply_fn: ApplyFn
    loss_fn: LossFn
    data: Held
    batch_size: int | None
    indices: np.ndarray = dataclasses.field(compare=False, repr=False)

    def __call__(self, state: TrainState) -> Float[Array, " num"]:
        """The losses at the parameters of a state."""

        def losses(chunk):
            x, y = chunk
            outputs = self.apply_fn(state.params, x)
            num = jnp.shape(jax.tree.leaves(x)[0])[0]
            return batching.example_losses(self.loss_fn, outputs, y, num)

        return map_examples(losses, self.data.tree, batch_size=self.batch_size)


def _draw(n, num, *, key):
    """Indices of the examples."""
    if num is None:
        if key is not None:
            raise ValueError(
                "`key` draws `num` examples, but `num` is None, which takes all. Pass "
                "`num` too, or no key."
            )
        return np.arange(n)
    if check_count(num=num) > n:
        raise ValueError(
            f"`num` must be at most the number of examples, {n}, but was {num}. Pass "
            "None for all."
        )
    check_key(key)
    check_known(key=key)
    with jax.ensure_compile_time_eval():
        chosen = jax.random.choice(key, n, (num,), replace=False)
    return np.sort(np.asarray(chosen))
