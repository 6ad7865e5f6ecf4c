"""Gaussian inputs with targets of a known function: a network, or one direction."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxtheory._types import ApplyFn, KeyArray
from jaxtheory.batching import check_key
from jaxtheory.data._checks import check_count, check_range

Link: TypeAlias = Literal["he1", "he2", "he3", "he4", "relu", "abs"]


class Teacher(NamedTuple):
    """Gaussian inputs and what a teacher says about them.

    Attributes:
        x_train: Training inputs.
        y_train: Training targets ``[n, k]``, or labels, int32 ``[n]``.
        x_test: Test inputs, independent of the training examples.
        y_test: Test targets or labels, as noisy as those for training.
    """

    x_train: Float[Array, "n ..."]
    y_train: Float[Array, "n k"] | Int[Array, " n"]
    x_test: Float[Array, "m ..."]
    y_test: Float[Array, "m k"] | Int[Array, " m"]


class SingleIndex(NamedTuple):
    """Gaussian inputs and a function of one direction.

    Attributes:
        x_train: Training inputs.
        y_train: Training targets.
        x_test: Test inputs, independent of the training examples.
        y_test: Test targets, as noisy as those for training.
        direction: The unit vector on which targets depend.
        information_exponent: Degree of the first nonzero term, beyond the constant, in
            the link's Hermite expansion.
    """

    x_train: Float[Array, "n d"]
    y_train: Float[Array, "n 1"]
    x_test: Float[Array, "m d"]
    y_test: Float[Array, "m 1"]
    direction: Float[Array, " d"]
    information_exponent: int


def teacher(
    apply_fn: ApplyFn,
    params: Any,
    *,
    input_shape: tuple[int, ...],
    num_train: int,
    num_test: int,
    targets: Literal["outputs", "classes"] = "outputs",
    noise: float | Float[Array, ""] = 0.0,
    key: KeyArray,
) -> Teacher:
    """Draw standard normal inputs and let a teacher network label them.

    ``y = apply_fn(params, x) + noise * z`` with standard normal ``z``, or the class
    ``argmax`` of that. A random teacher is a model at its initialisation.

    Args:
        apply_fn: The teacher, ``apply_fn(params, x[n, ...]) -> outputs[n, k]``.
        params: Its parameters.
        input_shape: Shape of one input.
        num_train: Number of training examples.
        num_test: Number of test examples.
        targets: ``"outputs"`` for regression, ``"classes"`` for classification.
        noise: Standard deviation of the noise on outputs, in training and test data.
        key: Random key. Test examples do not depend on `num_train`.

    Returns:
        The data set; ``apply_fn(params, x_test)`` are the test targets without noise.

    Raises:
        ValueError: A size is not positive, `noise` is negative, `targets` is unknown or
            outputs are not ``[n, k]``.

    Memory:
        The teacher's activations on all examples at once.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxtheory import data, models
        >>> key_teacher, key_data = jax.random.split(jax.random.key(0))
        >>> network = models.MLP((8,), num_outputs=3)
        >>> params = network.init(key_teacher, jnp.ones((1, 5)))
        >>> task = data.teacher(
        ...     network.apply,
        ...     params,
        ...     input_shape=(5,),
        ...     num_train=20,
        ...     num_test=10,
        ...     targets="classes",
        ...     key=key_data,
        ... )
        >>> task.x_train.shape, task.y_train.shape, task.y_train.dtype
        ((20, 5), (20,), dtype('int32'))
    """
    check_key(key)
    check_count(num_train=num_train, num_test=num_test)
    check_range("noise", noise, positive=False)
    if targets not in ("outputs", "classes"):
        raise ValueError(
            f'`targets` must be "outputs" or "classes", but was {targets!r}.'
        )

    def draw(key, num_examples):
        key_x, key_noise = jax.random.split(key)
        x = jax.random.normal(key_x, (num_examples, *input_shape))
        outputs = apply_fn(params, x)
        if jnp.ndim(outputs) != 2 or outputs.shape[0] != num_examples:
            raise ValueError(
                "`apply_fn` must return outputs [n, k], but for inputs of shape "
                f"{x.shape} returned shape {jnp.shape(outputs)}."
            )
        y = outputs + noise * jax.random.normal(key_noise, outputs.shape)
        return x, jnp.argmax(y, 1).astype(jnp.int32) if targets == "classes" else y

    key_train, key_test = jax.random.split(key)
    return Teacher(*draw(key_train, num_train), *draw(key_test, num_test))


def single_index(
    *,
    dim: int,
    num_train: int,
    num_test: int,
    link: Link = "he3",
    noise: float | Float[Array, ""] = 0.0,
    key: KeyArray,
) -> SingleIndex:
    r"""Draw standard normal inputs and a link function of one hidden direction.

    :math:`y = g(\langle u, x\rangle) + \text{noise} \cdot z` with
    :math:`x \sim N(0, I)`, :math:`u` uniform on the unit sphere and standard normal
    :math:`z`. Every link has :math:`E\, g(z)^2 = 1`; none is centred beyond that
    (``"relu"`` and ``"abs"`` have a positive mean). ``"he1"`` to ``"he4"`` are Hermite
    polynomials :math:`\mathrm{He}_j / \sqrt{j!}`.

    The information exponent is the smallest :math:`j \ge 1` with
    :math:`E\, g(z) \mathrm{He}_j(z) \ne 0`: j for ``"hej"``, 1 for ``"relu"``, 2 for
    ``"abs"``. Online gradient descent from a random start needs about
    :math:`d^{\max(1, j-1)}` examples (up to logarithms) to find :math:`u`.

    Args:
        dim: Input dimension ``d``.
        num_train: Number of training examples.
        num_test: Number of test examples.
        link: ``"he1"``, ``"he2"``, ``"he3"``, ``"he4"``, ``"relu"`` or ``"abs"``.
        noise: Standard deviation of the noise on targets, in training and test data.
        key: Random key. Test examples do not depend on `num_train`.

    Returns:
        The data set, with the direction and the information exponent.

    Raises:
        ValueError: A size is not positive, `noise` is negative or `link` is unknown.

    Example:
        >>> import jax
        >>> from jaxtheory import data
        >>> task = data.single_index(
        ...     dim=10, num_train=50, num_test=20, key=jax.random.key(0)
        ... )
        >>> task.x_train.shape, task.y_train.shape, task.information_exponent
        ((50, 10), (50, 1), 3)

    References:
        Ben Arous, Gheissari, Jagannath 2021, arXiv:2003.10409, section 1 (information
        exponent and sample sizes).
    """
    check_key(key)
    check_count(dim=dim, num_train=num_train, num_test=num_test)
    check_range("noise", noise, positive=False)
    if link not in tuple(_LINKS):
        raise ValueError(
            f"`link` must be one of {', '.join(map(repr, _LINKS))}, but was {link!r}."
        )
    g, exponent = _LINKS[link]
    key_direction, key_train, key_test = jax.random.split(key, 3)
    direction = jax.random.normal(key_direction, (dim,))
    direction = direction / jnp.linalg.norm(direction)

    def draw(key, num_examples):
        key_x, key_noise = jax.random.split(key)
        x = jax.random.normal(key_x, (num_examples, dim))
        signal = g(jnp.matmul(x, direction[:, None], precision="highest"))
        return x, signal + noise * jax.random.normal(key_noise, (num_examples, 1))

    train, test = draw(key_train, num_train), draw(key_test, num_test)
    return SingleIndex(*train, *test, direction, exponent)


_LINKS: dict[str, tuple[Callable[[Array], Array], int]] = {
    "he1": (lambda z: z, 1),
    "he2": (lambda z: (z**2 - 1) / 2**0.5, 2),
    "he3": (lambda z: (z**3 - 3 * z) / 6**0.5, 3),
    "he4": (lambda z: (z**4 - 6 * z**2 + 3) / 24**0.5, 4),
    "relu": (lambda z: 2**0.5 * jax.nn.relu(z), 1),
    "abs": (jnp.abs, 2),
}
