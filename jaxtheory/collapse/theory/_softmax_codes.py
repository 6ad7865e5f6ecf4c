"""Softmax codes: the classifiers of more classes than a simplex frame has room for."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from jaxtheory._types import KeyArray
from jaxtheory.batching import check_count, check_key
from jaxtheory.collapse._uniformity import one_vs_rest_margin

# Sharpness of the soft maximum along a search. At the last, what is left of softness is
# at most 2 log(K) / 1e5; a search that begins sharp stays where it begins.
_FIRST_SHARPNESS, _LAST_SHARPNESS = 2.0, 1e5
_LARGEST_STEP = 0.05


class SoftmaxCode(NamedTuple):
    """Unit vectors whose worst distance to the hull of the others is large.

    Attributes:
        vectors: The code, one unit vector in each row, float64. Shape ``[k, d]``.
        margin: Its one-vs-rest margin, computed exactly from the vectors: a lower bound
            on the largest possible one.
        margins: The margin that each start came to. Where they differ, more starts may
            find a larger one. Shape ``[s]``.
    """

    vectors: Float[np.ndarray, "k d"]
    margin: float
    margins: Float[np.ndarray, " s"]


def softmax_code_margin(num_classes: int, num_features: int) -> float | None:
    """The largest one-vs-rest margin of ``K`` unit vectors in ``d`` dimensions.

    ``max_W min_k dist(w_k, conv{w_j : j != k})`` is known to be

        K / (K - 1)          for K <= d + 1: the simplex frame
        1                    for d + 2 <= K <= 2 d: an orthoplex without some corners
        1 - cos(2 pi / K)    for d = 2: the regular polygon

    Args:
        num_classes: ``K``, at least 2.
        num_features: ``d``, at least 1.

    Returns:
        The margin, or None where it is not known: then `softmax_code` searches.

    Raises:
        ValueError: A number is too small or no integer.

    Example:
        >>> softmax_code_margin(5, 3), softmax_code_margin(10, 4)
        (1.0, None)

    References:
        Jiang et al. 2023, arXiv:2310.05351 (where simplex and orthoplex are
        the codes).
    """
    k = check_count(num_classes=num_classes, at_least=2)
    d = check_count(num_features=num_features)
    if k <= d + 1:
        return k / (k - 1)
    if d == 1:
        return 0.0  # two of three signs are equal
    if d == 2:
        return float(1 - np.cos(2 * np.pi / k))
    return 1.0 if k <= 2 * d else None


def softmax_code(
    num_classes: int,
    num_features: int,
    *,
    key: KeyArray,
    num_starts: int = 4,
    num_steps: int = 4000,
) -> SoftmaxCode:
    """Search for the softmax code of ``K`` classes in ``d`` dimensions.

    Classifier ``w_k`` and features ``h_k`` on the unit sphere minimise the hardest
    logit difference

        max_k max_{j != k} (w_j - w_k)^T h_k ,

    to which the cross-entropy of normalised features and classifier tends as its
    temperature vanishes. For given ``W`` the best ``h_k`` attain the distances ``dist(
    w_k, conv{w_j})``, so that the optimum has the largest one-vs-rest margin. Adam
    descends on the soft maximum ``(1/tau) log sum exp(tau .)``, with ``tau`` raised
    from 2 to 1e5 in equal ratios: cold starts at a large ``tau`` stick (margin 0.64
    where 1 is possible). The objective is not convex, hence several starts.

    Args:
        num_classes: ``K``, at least 2.
        num_features: ``d``, at least 1.
        key: Randomness of the starts.
        num_starts: Random starts; the best is returned.
        num_steps: Steps of each.

    Returns:
        The best code found. Its margin falls short of the largest by some 1e-6.

    Raises:
        ValueError: A number is too small or no integer, or `key` is no key.

    Memory:
        ``O(s K (K + d))`` for ``s`` starts; ``O(s K (K + d))`` time for each step.

    Example:
        >>> import jax
        >>> code = softmax_code(6, 3, key=jax.random.key(0), num_steps=1000)
        >>> print(f"{code.margin:.3f}")
        1.000

    References:
        Jiang et al. 2023, arXiv:2310.05351 (softmax codes, the HardMax problem).
    """
    k = check_count(num_classes=num_classes, at_least=2)
    d = check_count(num_features=num_features)
    starts = check_count(num_starts=num_starts)
    steps = check_count(num_steps=num_steps)
    check_key(key)
    found = np.asarray(_search(key, k, d, starts, steps), np.float64)
    codes = found / np.linalg.norm(found, axis=2, keepdims=True)
    margins = np.array([one_vs_rest_margin(code) for code in codes])
    best = int(np.argmax(margins))
    return SoftmaxCode(codes[best], float(margins[best]), margins)


@partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _search(key, num_classes, num_features, num_starts, num_steps):
    """The classifier that each start ends at."""
    optimizer = optax.scale_by_adam()

    def advance(carry, index):
        pair, state = carry
        raised = (_LAST_SHARPNESS / _FIRST_SHARPNESS) ** (index / num_steps)
        sharpness = _FIRST_SHARPNESS * raised
        gradient = jax.grad(_hardest)(pair, sharpness)
        update, state = optimizer.update(gradient, state)
        # Beyond the width of the soft maximum, a step would jump over it.
        length = jnp.minimum(_LARGEST_STEP, 0.5 / sharpness)
        moved = jax.tree.map(lambda p, u: _unit(p - length * u), pair, update)
        return (moved, state), None

    def search(start):
        pair = jnp.stack([start, start])
        carry = (pair, optimizer.init(pair))
        return jax.lax.scan(advance, carry, jnp.arange(num_steps))[0][0][0]

    shape = (num_starts, num_classes, num_features)
    return jax.vmap(search)(_unit(jax.random.normal(key, shape)))


def _hardest(pair, sharpness):
    """Soft maximum of ``(w_j - w_k)^T h_k`` over all ``j != k``."""
    weight, features = _unit(pair)
    logits = jnp.matmul(features, weight.T, precision="highest")
    differences = logits - jnp.diagonal(logits)[:, None]
    others = ~jnp.eye(len(weight), dtype=bool)
    soft = jax.nn.logsumexp(sharpness * differences, where=others)
    return soft / sharpness


def _unit(rows):
    """Rows over their length."""
    return rows / jnp.linalg.norm(rows, axis=-1, keepdims=True)
