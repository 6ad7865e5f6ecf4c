"""The mean gap of an algorithm, from what its outputs tell of who was trained on."""

from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float, Integer, Real

from jaxtheory._types import Bound
from jaxtheory.batching import check_word
from jaxtheory.bounds._ledger import (
    ESTIMATED,
    SETTING,
    check_concrete,
)
from jaxtheory.bounds._trajectory import (
    BOUNDED,
    LOSSES_IN_RANGE,
    check_losses,
    gap_bound,
)


def functional_cmi(
    predictions: Integer[ArrayLike, "t n 2"],
    losses: Real[ArrayLike, "t n 2"],
    selectors: Integer[ArrayLike, "t n"],
    *,
    loss_bound: float = 1.0,
) -> Bound:
    r"""Bound on the mean gap from predictions on a supersample (f-CMI).

    Of ``n`` pairs of examples ``z_i0, z_i1`` fair coins ``U_i`` choose the one that is
    trained on; the other is left for testing. The training is repeated ``t`` times with
    new coins. For a loss in ``[0, B]``, with ``F_i`` both predictions of pair ``i``,

    .. math:: | E[\text{test loss} - \text{training loss}] | \le
        \frac{B}{n} \sum_i \sqrt{2 I(F_i; U_i)}

    in the mean over coins and the algorithm's own randomness; also over the pairs, if
    the right side is averaged over supersamples (call it for each). ``I`` in nats: 0
    for an algorithm that ignores its data, ``ln 2`` for one that knows what it was
    trained on, where the bound is ``1.18 B``.

    **Bias.** ``I`` is that of the frequencies among the ``t`` runs (plug-in): too large
    in the mean by about ``(m - 1) / (2 t)`` for a pair with ``m`` different
    predictions. Where each coin falls on both sides ``t / 2`` times, it is never too
    small in the mean (information is convex in what makes ``F`` of ``U``). Draw them
    so: half of the runs, and the same with all coins turned. Its root can be too small
    in the mean, as roots are concave: .119 in place of .188 in 20 runs, for a
    prediction that changes with probability 1/20 where one of the two is trained on.
    What is reported is at least the gap in the runs given all the same: the inequality
    holds for balanced frequencies too.

    To train all runs at once, let the model state say what is used::

        half = jax.random.bernoulli(key, 0.5, (t // 2, n)).astype(int)
        selectors = jnp.concatenate([half, 1 - half])
        used = jax.nn.one_hot(selectors, 2).reshape(t, 2 * n)


        def objective(params, used, batch, key):
            x, y, index = batch  # pairs flattened, x[2 n, ...], and arange(2 n)
            return jnp.mean(2 * used[index] * loss(apply(params, x), y)), used


        states = dynamics.init_population(optimizer, params, model_state=used)
        dynamics.train_population(objective, states, optimizer, (x, y, index), ...)

    and outputs ``[t, 2 n, k]`` of its ``history.state.params`` make predictions
    ``outputs.argmax(-1).reshape(t, n, 2)``.

    Args:
        predictions: Predicted classes of both examples of each pair, in each run.
        losses: Losses of the same, which must follow from them, such as 0 and 1. They
            give the training loss; the bound on the gap does not depend on them.
        selectors: Which one each run was trained on, 0 or 1.
        loss_bound: Largest loss ``B`` that an example can have.

    Returns:
        Bound in expectation (`delta` is None) on the mean test loss: mean training loss
        and gap (`complexity`). No certificate: the information is estimated. What it is
        too large by, and the standard error of the gap (a jackknife over runs), are in
        `assumptions`.

    Raises:
        ValueError: Shapes do not fit; predictions are not integers, or one of them has
            different losses; selectors are not 0 or 1, or those of a pair are the same
            in all runs; a loss is out of range; a value is traced.

    Memory:
        Some copies of `predictions`.

    Example:
        >>> import numpy as np
        >>> half = np.random.default_rng(0).integers(0, 2, (50, 20))
        >>> selectors = np.concatenate([half, 1 - half])
        >>> errs = np.stack([selectors == 1, selectors == 0], axis=-1)
        >>> by_heart = functional_cmi(errs.astype(int), errs * 1.0, selectors)
        >>> round(by_heart.complexity, 4), by_heart.vacuous
        (1.1774, True)
        >>> functional_cmi(np.ones((100, 20, 2), int), errs * 0.0, selectors).value
        0.0

    References:
        Harutyunyan et al. 2021, arXiv:2110.01584, theorem 3.1 with m = 1; Steinke &
        Zakynthinou 2020, arXiv:2001.09923 (supersamples).
    """
    check_concrete(predictions=predictions)
    given = np.asarray(predictions)
    if not np.issubdtype(given.dtype, np.integer) or given.shape[2:] != (2,):
        raise ValueError(
            "`predictions` must be class indices of both examples of each pair in each "
            f"run, [t, n, 2], but has shape {given.shape} and dtype {given.dtype}. "
            "Take the argmax of outputs."
        )
    array, chosen, largest = _check(losses, selectors, loss_bound)
    if given.shape != array.shape:
        raise ValueError(
            f"`predictions` must have the shape of `losses`, {array.shape}, but has "
            f"shape {given.shape}."
        )
    _check_told(given, array)
    found = _information(given, chosen)
    return _bound(array, chosen, largest, found, _square_root, "predictions")


def evaluated_cmi(
    losses: Real[ArrayLike, "t n 2"],
    selectors: Integer[ArrayLike, "t n"],
    *,
    loss_bound: float = 1.0,
    form: Literal["square_root", "interpolating"] = "square_root",
) -> Bound:
    r"""Bound on the mean gap from differences of losses on a supersample (ld-CMI).

    As `functional_cmi`, with the difference ``D_i = l_i1 - l_i0`` of the two losses of
    a pair in place of the predictions:

    - ``"square_root"``: the gap is at most ``(B / n) sum_i sqrt(2 I(D_i; U_i))``;
    - ``"interpolating"``: where every training loss is 0, the test loss is at most
      ``(B / n) sum_i I(D_i; U_i) / ln 2``: a ``D`` that is not 0 tells by its sign
      which one was trained on, so that ``I >= ln 2 P(D != 0)``. For losses of 0 and 1
      it is nearly the test loss itself.

    Where losses follow from predicted classes, ``D`` tells no more than these, and the
    bound is at most that of `functional_cmi`. Of losses that take another value in each
    run frequencies tell nothing (``I = ln 2``): round them, which bounds the rounded.

    Args:
        losses: Losses of both examples of each pair, in each run.
        selectors: Which one each run was trained on, 0 or 1.
        loss_bound: Largest loss ``B`` that an example can have.
        form: Which inequality.

    Returns:
        As `functional_cmi`.

    Raises:
        ValueError: As for `functional_cmi`; or a training loss is not 0 and `form` is
            ``"interpolating"``.

    Memory:
        Some copies of `losses`.

    Example:
        >>> import numpy as np
        >>> half = np.random.default_rng(0).integers(0, 2, (50, 20))
        >>> selectors = np.concatenate([half, 1 - half])
        >>> by_heart = np.stack([selectors == 1, selectors == 0], axis=-1) * 1.0
        >>> bound = evaluated_cmi(by_heart, selectors, form="interpolating")
        >>> round(bound.value, 4)
        1.0

    References:
        Wang & Mao 2023, arXiv:2302.02432 (loss differences; the interpolating form);
        Steinke & Zakynthinou 2020, arXiv:2001.09923, section 6.2 (evaluated CMI).
    """
    check_word("form", form, ("square_root", "interpolating"))
    array, chosen, largest = _check(losses, selectors, loss_bound)
    found = _information(array[..., 1:] - array[..., :1], chosen)
    if form == "square_root":
        return _bound(array, chosen, largest, found, _square_root, "losses")
    training = _trained(array, chosen)
    if np.any(training > 0):
        raise ValueError(
            "`losses` must be 0 for all that was trained on where `form` is "
            f"'interpolating', but {np.mean(training > 0):.1%} of them are above 0. "
            "Take 'square_root'."
        )
    linear = lambda information: np.maximum(information, 0) / np.log(2)
    return _bound(array, chosen, largest, found, linear, "losses")


def _check_told(predictions, losses):
    """Raise unless the loss of each example follows from its predicted class."""
    flat = lambda array: array.reshape(len(array), -1)
    order = np.argsort(flat(predictions), axis=0, kind="stable")
    classes, given = (
        np.take_along_axis(flat(array), order, axis=0)
        for array in (predictions, losses)
    )
    other = (classes[1:] == classes[:-1]) & (given[1:] != given[:-1])
    if np.any(other):
        raise ValueError(
            "`losses` must follow from `predictions`, such as 0 and 1 for right and "
            f"wrong, but for {np.any(other, axis=0).sum()} of {other.shape[1]} examples"
            " one prediction has different losses: the predicted class does not tell "
            "what the loss does. Take `evaluated_cmi`, or the losses of the classes."
        )


class _Information(NamedTuple):
    """Plug-in information of each pair, without each run in turn, and its bias."""

    values: Float[np.ndarray, " n"]
    left_out: Float[np.ndarray, "t n"]
    bias: float
    balanced: bool


def _square_root(information):
    # A rounding error below zero is none.
    return np.sqrt(2 * np.maximum(information, 0))


def _information(outcomes, selectors):
    """Mutual information of outcomes ``[t, n, ...]`` and selectors, pair by pair.

    ``t I = sum_fu g(n_fu) - sum_f g(n_f) - sum_u g(n_u) + g(t)`` with ``g(n) = n ln
    n``; leaving one run out changes one term of each sum.
    """
    runs, pairs = selectors.shape
    place = np.broadcast_to(np.arange(pairs), (runs, pairs))
    rows = np.concatenate([place[..., None], outcomes], axis=-1).reshape(
        runs * pairs, -1
    )
    _, group = np.unique(rows, axis=0, return_inverse=True)
    group = group.reshape(runs, pairs)
    both = _counts(2 * group + selectors)
    outcome, side = _counts(group), _counts(2 * place + selectors)
    # A sum over runs of ln n is one over values of n ln n.
    total = np.sum(np.log(both) - np.log(outcome) - np.log(side) + np.log(runs), axis=0)
    drop = lambda n: _n_log_n(n) - _n_log_n(n - 1)
    change = drop(both) - drop(outcome) - drop(side) + drop(np.float64(runs))
    num_outcomes = np.sum(1 / outcome, axis=0)
    return _Information(
        total / runs,
        (total[None] - change) / (runs - 1),
        float(np.mean(num_outcomes - 1) / (2 * runs)),
        bool(np.all(2 * side == runs)),
    )


def _counts(codes):
    """How often the code of each entry occurs."""
    return np.bincount(codes.ravel())[codes].astype(np.float64)


def _n_log_n(n):
    return n * np.log(np.maximum(n, 1))


def _bound(losses, selectors, largest, found, gap_of, source):
    """The bound, and how well its information is known."""
    runs = len(losses)
    gap = largest * float(np.mean(gap_of(found.values)))
    without = largest * np.mean(gap_of(found.left_out), axis=1)
    error = np.sqrt((runs - 1) / runs * np.sum(np.square(without - without.mean())))
    balance = "falls on both sides as often" if found.balanced else "is not balanced"
    return gap_bound(
        empirical_risk=float(np.mean(_trained(losses, selectors))),
        gap=gap,
        loss_bound=largest,
        delta=None,
        assumptions=(
            (SETTING, "pairs and coins are drawn independently, the coins are fair"),
            BOUNDED,
            LOSSES_IN_RANGE,
            (
                ESTIMATED,
                f"information in {source}, from frequencies in {runs} runs: too large "
                f"by about {found.bias:.2g} nats (each coin {balance}); the gap has a "
                f"standard error of {error:.2g}",
            ),
            (
                ESTIMATED,
                "the bound is on a mean over supersamples, coins and runs, computed "
                "from the one supersample given",
            ),
        ),
    )


def _trained(losses, selectors):
    """Losses ``[t, n]`` of what each run was trained on."""
    return np.take_along_axis(losses, selectors[..., None], axis=-1)[..., 0]


def _check(losses: Any, selectors: Any, loss_bound: Any):
    """Losses ``[t, n, 2]`` in float64, selectors and the largest loss."""
    check_concrete(losses=losses, selectors=selectors)
    shape = np.shape(losses)
    if len(shape) != 3 or shape[0] < 2 or shape[1] < 1 or shape[2] != 2:
        raise ValueError(
            "`losses` must hold those of both examples of each pair, in each of at "
            f"least two runs, [t, n, 2], but has shape {shape}. Of [t, 2 n], pairs "
            "side by side, take `losses.reshape(t, n, 2)`."
        )
    flat, largest = check_losses(np.asarray(losses).reshape(shape[0], -1), loss_bound)
    chosen = np.asarray(selectors)
    other = np.iscomplexobj(chosen) or not np.all((chosen == 0) | (chosen == 1))
    if chosen.shape != shape[:2] or other:
        raise ValueError(
            f"`selectors` must be 0 or 1 for each run and pair, {list(shape[:2])}, but "
            f"has shape {chosen.shape} and dtype {chosen.dtype}, or other values."
        )
    same = np.all(chosen == chosen[:1], axis=0)
    if np.any(same):
        raise ValueError(
            "`selectors` must differ between runs, but every run was trained on the "
            f"same example of {same.sum()} of the {len(same)} pairs, which tells "
            "nothing of them. Toss balanced coins: half of the runs, and the same with "
            "all coins turned."
        )
    return flat.reshape(shape), chosen.astype(np.int64), largest
