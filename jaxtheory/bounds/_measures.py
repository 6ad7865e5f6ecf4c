"""All measures of a trained network that need no retraining, in one program."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Integer

from jaxtheory._types import ApplyFn, KeyArray, LossFn, Params
from jaxtheory.batching import (
    check_count,
    check_examples,
    check_function,
    check_key,
    check_params,
    check_problem,
)
from jaxtheory.bounds._measures_curvature import (
    hessian_measures,
    perturbation_measures,
)
from jaxtheory.bounds._measures_gradients import gradient_measures
from jaxtheory.bounds._measures_kernels import kernel_measures
from jaxtheory.bounds._measures_layers import layer_measures
from jaxtheory.bounds._measures_outputs import (
    input_measures,
    output_measures,
    wide_outputs,
)
from jaxtheory.bounds._measures_paths import LEAST_POINTS, path_measures
from jaxtheory.bounds._measures_weights import spectrum_measures
from jaxtheory.bounds._norms import _check_labels, check_same_shapes, norm_measures

_LEAST_EXAMPLES = 4  # for the debiased alignment of the tangent kernel


class _Settings(NamedTuple):
    """What is static in the compilation."""

    apply_fn: ApplyFn
    loss_fn: LossFn
    layers: Callable[[Any, Any], Any] | None
    classifier: Callable[[Any], Any] | None
    num_probes: int
    num_iterations: int
    num_draws: int
    num_kernel_examples: int


def measures(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    params: Params,
    x: Float[Array, "n ..."],
    y: Integer[Array, " n"],
    *,
    initial_params: Params,
    key: KeyArray,
    layers: Callable[[Any, Any], Any] | None = None,
    classifier: Callable[[Any], Any] | None = None,
    path: tuple[Float[ArrayLike, "r dim"], Float[ArrayLike, " steps"] | None]
    | None = None,
    num_probes: SupportsIndex = 8,
    num_iterations: SupportsIndex = 16,
    num_draws: SupportsIndex = 8,
    num_kernel_examples: SupportsIndex = 64,
) -> dict[str, Float[Array, ""]]:
    r"""Everything that the weights at the end of training tell about the gap.

    Over 60 numbers of one classifier and its training examples, in one compiled program
    that shares what they have in common: the Hessian's are read from one set of Lanczos
    runs, those of single gradients from one block of the tangent kernel an example, all
    perturbations from the same draws. None is a bound; `bounds.evaluate` says which of
    them rank a population by its gap.

    Means are over the ``n`` examples, ``f`` outputs, ``g_i`` the gradient of example
    ``i``, ``H`` the Hessian of the mean loss, ``G = (1/n) sum J_i^T H_i J_i`` the
    Gauss-Newton matrix, ``t`` the parameters, ``L(t)`` the mean loss:

    ``loss, loss_deviation, error``
        Mean and standard deviation (``1/n``) of the losses, share of wrong examples.
    ``output_entropy, confidence, output_norm``
        Mean entropy of the softmax in nats, of its largest entry, of ``|f|``.
    ``margin_mean, margin_median, margin_deviation``
        Of ``f_y - max_{j != y} f_j``.
    ``input_margin, geometric_complexity``
        Median of the margin over ``|d margin / d x|``; mean of ``|d f / d x|_F^2``.
    ``gradient_norm, gradient_variance, gradient_noise_scale``
        ``|g|`` of the mean ``g``, trace of the covariance (``1/(n-1)``), their ratio
        ``variance / |g|^2`` as `dynamics.noise.noise_scale`.
    ``gradient_coherence``
        Mean cosine of the gradients of two examples (stiffness).
    ``empirical_fisher_trace, ggn_trace, fisher_rao``
        Mean ``|g_i|^2``, ``tr G``, ``t^T G t``; exact. Under cross-entropy ``G`` is the
        Fisher information.
    ``ntk_trace``
        Mean of ``|J_i|_F^2 / k``.
    ``sharpness, smallest_hessian_eigenvalue, hessian_trace, hessian_frobenius_norm``
        Of ``H``, from `num_probes` Lanczos runs of `num_iterations` products, without
        reorthogonalisation.
    ``effective_dimension``
        ``sum s / (s + 1)`` over the positive eigenvalues ``s`` of ``H``, likewise.
    ``relative_flatness, sam_sharpness, asam_sharpness``
        As `curvature.flatness` has them, with its defaults.
    ``lpf_rise``
        ``E L(t + .01 z) - L(t)`` with ``z`` standard normal.
    ``perturbation, relative_perturbation``
        The size ``s`` at which ``E L(t + s z) - L(t) = .1``, and at which ``E L(t + s
        |t| z) - L(t)`` is; by 6 bisections between .001 and 10 times the root mean
        square of ``t``, or 1, and a parabola between the last two. Infinite where the
        loss does not rise so far.
    ``pac_bayes_flatness``
        ``sqrt((|t - t0|^2 / (2 s^2) + ln(2 sqrt(n) / .05)) / (2 n))`` with the first
        ``s``: no certificate, see `curvature.flatness.pac_bayes`.
    ``ntk_alignment, ntk_effective_rank, ntk_stable_rank, ntk_condition_number``
        Of the tangent kernel ``K`` (its trace over outputs, divided by ``k``) on
        `num_kernel_examples` evenly spaced examples, as `kernels.centred_alignment`
        (debiased) with one-hot labels and `kernels.spectrum_summary`.
    ``ntk_complexity, ntk_cross_validation``
        ``sqrt(2 sum_c y_c^T K^-1 y_c / m)`` of those ``m`` examples, ``y_c`` the
        one-hot labels less ``1/k``; and the generalised cross-validation of the
        regression with them, by `kernels.kernel_regression`.
    ``power_law_exponent, weighted_power_law_exponent, entry_tail_index``
        Means over weight matrices ``W``, as `dynamics.tails.weight_spectra`; weighted
        is the mean of ``exponent log10 |W|^2``; both NaN where no matrix has twenty
        eigenvalues.
    ``marchenko_pastur_distance``
        Likewise, the Kolmogorov-Smirnov distance of the spectrum to that of noise.
    ``num_params, margin, param_norm, path_norm`` and others
        All that `norm_measures` lists.

    With `layers`: ``nc1, nc1_ratio, nc2, nc2_equinorm, nc2_equiangular, cdnv,
    directional_cdnv`` (and ``nc3, nc4`` with `classifier`) of `collapse.statistics` of
    the last layer; ``feature_alignment`` of its Gram matrix with one-hot labels
    (debiased CKA), ``feature_rank`` (entropy of the singular values of the centred
    features); of three layers and more the law of separation: ``separation`` of the
    last, ``separation_ratio``, ``separation_drop_variation``.

    With `path`: ``path_length``, ``e_1`` (sum of the lengths of the minimum spanning
    tree), ``e_half`` (of their roots), ``e_1_over_path_length``,
    ``displacement_over_path_length``, ``step_tail_index`` (`dynamics.tails.log_moment`
    of the steps).

    What is not finite stays so, and ``num_nonfinite`` counts it.

    Args:
        apply_fn: The model, ``apply_fn(params, x) -> outputs[n, k]``, ``k >= 2``.
        loss_fn: ``loss_fn(outputs, targets) -> losses[n]``, twice differentiable.
        params: Parameters at the end of training.
        x: Inputs trained on, floating-point.
        y: Their class indices in ``[0, k)``.
        initial_params: Parameters where training began.
        key: Random key. The same for all networks of a population makes them
            comparable: they meet the same probes and perturbations.
        layers: ``layers(params, x)``, the features of all layers from the input side,
            a sequence or dictionary: ``functools.partial(models.features, model)``.
            As all functions, one and the same object in every call, or it is compiled
            again.
        classifier: ``classifier(params) -> (weight, bias)`` of the last layer:
            ``functools.partial(models.classifier, model)``. Needs `layers`.
        path: Iterates at the end of training, or sketches of them (`dynamics.sketch`),
            at least 41, with the exact lengths of the steps between them or None.
        num_probes: Lanczos runs, and probes of the relative flatness, at least 2.
        num_iterations: Hessian products of each run, at most as many as parameters.
        num_draws: Perturbations.
        num_kernel_examples: Examples ``m`` of the tangent kernel, at least 4; at most
            ``n`` are taken.

    Returns:
        A scalar by name, sorted by name. Pure: jit it, or vmap it over stacked
        `params`, `initial_params` and `path`. What needs a singular value or eigenvalue
        decomposition runs one network after the other there (batches of several such
        at once can stop XLA's CPU programs for good).

    Raises:
        ValueError: Outputs are not ``[n, k]`` with two or more classes, labels are no
            class indices, fewer than four examples, `classifier` without `layers`, a
            path too short, or an option out of range.

    Memory:
        Activations of all examples, ``max(k, num_draws)`` times, and as many copies of
        the parameters.

    Example:
        >>> import functools, jax, optax
        >>> from jaxtheory import models
        >>> model = models.MLP((8,), num_outputs=3)
        >>> x = jax.random.normal(jax.random.key(0), (30, 4))
        >>> start, end = (model.init(jax.random.key(i), x[:1]) for i in (1, 2))
        >>> found = measures(
        ...     model.apply,
        ...     optax.softmax_cross_entropy_with_integer_labels,
        ...     end,
        ...     x,
        ...     jnp.arange(30) % 3,
        ...     initial_params=start,
        ...     key=jax.random.key(3),
        ... )
        >>> len(found), float(found["num_params"])
        (64, 67.0)

    References:
        Jiang et al. 2019, arXiv:1912.02178; Dziugaite et al. 2020, arXiv:2010.11924
        (studies of such measures); Fort et al. 2019, arXiv:1901.09491 (stiffness);
        Arora et al. 2019, arXiv:1901.08584, theorem 5.1 (``ntk_complexity``); Martin &
        Mahoney 2021, arXiv:2002.06716 (weighted exponent). Those of each function
        named above.
    """
    check_key(key)
    problem = (apply_fn, loss_fn, params, x, y)
    options = _counts(num_probes, num_iterations, num_draws, num_kernel_examples)
    _check(*problem, initial_params, layers, classifier, path)
    options["num_kernel_examples"] = min(options["num_kernel_examples"], x.shape[0])
    settings = _Settings(apply_fn, loss_fn, layers, classifier, **options)
    return _measures(settings, params, initial_params, x, y, path, key)


def _counts(num_probes, num_iterations, num_draws, num_kernel_examples):
    """The checked options, by name."""
    return {
        "num_probes": check_count(at_least=2, num_probes=num_probes),
        "num_iterations": check_count(num_iterations=num_iterations),
        "num_draws": check_count(num_draws=num_draws),
        "num_kernel_examples": check_count(
            at_least=_LEAST_EXAMPLES, num_kernel_examples=num_kernel_examples
        ),
    }


def _check(apply_fn, loss_fn, params, x, y, initial_params, layers, classifier, path):
    """Raise unless everything fits together."""
    check_function("apply_fn", apply_fn)
    check_params(initial_params, "initial_params")
    check_same_shapes(params, initial_params)
    check_examples(x=x, y=y)
    _check_labels(y, jax.eval_shape(apply_fn, params, x))
    n = check_problem(apply_fn, loss_fn, params, x, y)
    if n < _LEAST_EXAMPLES:
        raise ValueError(
            f"`x` must hold at least {_LEAST_EXAMPLES} examples, but holds {n}."
        )
    for name, function in (("layers", layers), ("classifier", classifier)):
        if function is not None:
            check_function(name, function)
    if classifier is not None and layers is None:
        raise ValueError(
            "`layers` must be given with `classifier`, which acts on the last of them, "
            "but was None. Pass `functools.partial(models.features, model)`."
        )
    if path is None:
        return
    if not isinstance(path, tuple) or len(path) != 2:
        raise ValueError(
            "`path` must be a pair of points [r, dim] and lengths of steps [r-1] (or "
            f"None), but is of type {type(path).__name__}."
        )
    shape = jnp.shape(path[0])
    lengths = shape[:1] if path[1] is None else (jnp.shape(path[1])[0] + 1,)
    if len(shape) != 2 or shape[0] < LEAST_POINTS or shape[:1] != lengths:
        raise ValueError(
            f"`path` must be at least {LEAST_POINTS} points [r, dim] and the r - 1 "
            f"lengths between them, but they have shapes {shape} and "
            f"{None if path[1] is None else jnp.shape(path[1])}."
        )


@functools.partial(jax.jit, static_argnums=0)
def _measures(settings, params, initial_params, x, y, path, key):
    """One program; `settings` is static."""
    s = settings
    problem = (s.apply_fn, s.loss_fn, params, x, y)
    to_hessian, to_draws, to_spectra, to_path = jax.random.split(key, 4)
    outputs = wide_outputs(s.apply_fn, x)(params)
    losses = s.loss_fn(outputs, y)
    # Several batched decompositions at once wait for each other's threads on a CPU.
    one_by_one = jax.custom_batching.sequential_vmap(
        functools.partial(_decomposed, s, outputs.shape[1], jax.random.key_impl(key))
    )
    found = {
        **output_measures(outputs, losses, y),
        **input_measures(s.apply_fn, params, x, y),
        **gradient_measures(*problem),
        **hessian_measures(
            *problem,
            key=to_hessian,
            num_probes=s.num_probes,
            num_iterations=s.num_iterations,
        ),
        **perturbation_measures(
            *problem, initial_params, key=to_draws, num_draws=s.num_draws
        ),
        **one_by_one(params, initial_params, x, y, jax.random.key_data(to_spectra)),
    }
    if path is not None:
        found |= path_measures(*path, key=to_path)
    wrong = [~jnp.isfinite(value) for value in found.values()]
    return found | {"num_nonfinite": jnp.sum(jnp.stack(wrong)).astype(losses.dtype)}


def _decomposed(settings, num_classes, impl, params, initial_params, x, y, key):
    """What needs singular values or eigenvalues of weights, features or kernels."""
    s = settings
    found = {
        **norm_measures(s.apply_fn, params, x, y, initial_params=initial_params),
        **kernel_measures(s.apply_fn, params, x, y, num_classes, s.num_kernel_examples),
        # A key itself would count as used twice where it passes such a function.
        **spectrum_measures(params, key=jax.random.wrap_key_data(key, impl=impl)),
    }
    if s.layers is not None:
        found |= layer_measures(s.layers, s.classifier, params, x, y, num_classes)
    return found
