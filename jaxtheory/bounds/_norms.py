"""Capacity measures of a network from norms of its weights and its margins."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Integer

from jaxtheory._types import ApplyFn, Params
from jaxtheory.batching import (
    SelectFn,
    check_batch_size,
    check_examples,
    check_function,
    check_number,
    check_params,
    map_examples,
    select_leaves,
)


def norm_measures(
    apply_fn: ApplyFn,
    params: Params,
    x: Float[Array, "n ..."],
    y: Integer[Array, " n"],
    *,
    initial_params: Params,
    margin_quantile: float = 0.1,
    select: SelectFn | None = None,
    batch_size: int | None = None,
) -> dict[str, Float[Array, ""]]:
    r"""Measure the capacity of a classifier by norms, margin and distance from start.

    Of the ``L`` kernels ``W`` (a convolution's ``[height, width, in, out]`` as the
    matrix ``[height width in, out]``), with ``W0`` where training began, ``|W|`` the
    spectral and ``|W|_F`` the Frobenius norm, and ``g`` the `margin_quantile` of
    ``f_y - max_{j != y} f_j`` over the examples. Sums and products are over kernels:

    ============================  =================================================
    ``num_params``                numbers in all arrays of `params`
    ``margin``                    ``g``
    ``inverse_margin``            ``1 / g^2``
    ``param_norm``                ``sum |W|_F^2``
    ``fro_dist``                  ``sum |W - W0|_F^2``
    ``dist_spec_init``            ``sum |W - W0|^2``
    ``sum_of_squared_spec``       ``sum |W|^2``
    ``log_prod_of_spec``          ``ln prod |W|^2``
    ``log_sum_of_spec``           ``ln(L (prod |W|^2)^(1/L))``
    ``log_prod_of_fro``           ``ln prod |W|_F^2``
    ``log_sum_of_fro``            ``ln(L (prod |W|_F^2)^(1/L))``
    ``fro_over_spec``             ``sum |W|_F^2 / |W|^2``, the stable ranks
    ``log_spec_orig_main``        ``ln(prod |W|^2 sum |W|_F^2 / |W|^2 / g^2)``
    ``log_spec_init_main``        ``ln(prod |W|^2 sum |W - W0|_F^2 / |W|^2 / g^2)``
    ``log_spectral_complexity``   ``ln(prod |W| (sum (m / |W|)^(2/3))^(3/2))`` with
                                  ``m`` the sum over outputs of the Euclidean norms
                                  of the columns of ``W - W0``
    ``path_norm``                 ``sum_j f_j(ones; params^2)``
    ============================  =================================================

    and with ``_over_margin`` behind the name ``log_prod_of_spec``, ``log_sum_of_spec``,
    ``log_prod_of_fro``, ``log_sum_of_fro`` (``g^2`` divides the product, before the
    root), ``log_spectral_complexity`` (less ``ln g``) and ``path_norm`` (over ``g^2``).
    Products are logarithms because those of a deep network overflow. Published studies
    take roots of these over ``n``, which ranks networks of one ``n`` alike.

    Where ``g <= 0`` what is divided by it is infinite: there is no margin. The code of
    the 2020 study takes ``|g|`` there, which calls a network that errs by much as good
    as one that is right by much.

    **Convolutions.** The spectral norm of that matrix is not the norm of the linear map
    between images: with stride 1 and images no smaller than the kernel, that one is
    between ``|W|`` and ``sqrt(height width) |W|``, and depends on the image's size.

    **Path norm.** That of a ReLU network with weights as they act (standard
    parametrisation): the sum over paths, those from biases too, of products of squared
    weights. Of averages in it (pooling) weights are not squared, nor is what
    `apply_fn` binds, such as BatchNorm. For other activations it is only a number.

    The Fisher-Rao norm needs a loss: `curvature.flatness.fisher_rao`.

    Args:
        apply_fn: The model, ``apply_fn(params, x) -> outputs[n, k]``.
        params: Parameters; outputs are the last axis of a kernel, as in Flax.
        x: Inputs ``[n, ...]``, those trained on.
        y: Class indices in ``[0, k)``.
        initial_params: Parameters where training began.
        margin_quantile: In [0, 1]; the studies take a tenth.
        select: ``select(path) -> bool`` of what is a kernel; None takes all arrays of
            two and more axes.
        batch_size: Examples per chunk; None takes all at once.

    Returns:
        A scalar by name, NaN where `params` are (but for their number), and what has
        the margin in it where a traced label is no class or outputs overflow. Pure: jit
        it, or vmap it over stacked `params` and `initial_params`. No penalties: the
        gradient of a distance is NaN where training begins.

    Raises:
        ValueError: Parameters differ in structure or shapes; `y` are no class indices;
            outputs are not ``[n, k]`` with two or more classes; nothing is selected.

    Memory:
        The outputs, and one chunk's activations; ``n p^2`` operations for each kernel
        matrix ``[n, p]``, ``n >= p``, twice.

    Example:
        >>> import jax.numpy as jnp
        >>> def network(params, x):
        ...     return jnp.maximum(x @ params["w"], 0) @ params["v"]
        >>> params = {"w": 2 * jnp.eye(2), "v": jnp.eye(2)}
        >>> x, y = jnp.eye(2), jnp.arange(2)
        >>> start = {"w": jnp.eye(2), "v": jnp.eye(2)}
        >>> found = norm_measures(network, params, x, y, initial_params=start)
        >>> names = "margin", "param_norm", "fro_dist", "fro_over_spec", "path_norm"
        >>> {name: round(float(found[name]), 4) for name in names}
        {'margin': 2.0, 'param_norm': 10.0, 'fro_dist': 2.0, 'fro_over_spec': 4.0,
        'path_norm': 8.0}

    References:
        Jiang et al. 2019, arXiv:1912.02178, appendix C; Dziugaite et al. 2020,
        arXiv:2010.11924, appendix C; Bartlett, Foster & Telgarsky 2017,
        arXiv:1706.08498, eq. 1.2 (spectral complexity); Neyshabur et al. 2015,
        arXiv:1503.00036 (path norm); Sedghi et al. 2018, arXiv:1805.10408 (norms of
        convolutions).
    """
    check_function("apply_fn", apply_fn)
    check_params(params)
    check_params(initial_params, "initial_params")
    check_same_shapes(params, initial_params)
    check_number("margin_quantile", margin_quantile, lambda q: 0 <= q <= 1, "in [0, 1]")
    check_batch_size(batch_size)
    check_examples(x=x, y=y)
    if not isinstance(x, jax.Array | np.ndarray):
        raise ValueError(
            f"`x` must be one array of inputs, but is of type {type(x).__name__}."
        )
    if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
        raise ValueError(
            f"`x` must be floating-point, but has dtype {jnp.result_type(x)}. Cast "
            "images to float32; tokens have no path norm."
        )
    _check_labels(y, jax.eval_shape(apply_fn, params, x))
    paths = tuple(_kernels(params, select))
    data = (x, y, margin_quantile)
    return _measures(apply_fn, paths, batch_size, params, initial_params, *data)


def check_same_shapes(params: Any, initial_params: Any) -> None:
    """Raise unless both pytrees have one structure and the same shapes."""
    shapes = [
        {
            jax.tree_util.keystr(path): np.shape(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (params, initial_params)
    ]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "`initial_params` must have the structure and shapes of `params`, "
            f"{shapes[0]}, but has {shapes[1]}. Pass those that training began with "
            "(`state.initial_params`)."
        )


def _check_labels(y, outputs):
    """Raise unless `y` are class indices of outputs ``[n, k]``."""
    n = np.shape(y)[0]
    shape = getattr(outputs, "shape", None)
    if shape is None or len(shape) != 2 or shape[0] != n or shape[1] < 2:
        was = f"of shape {shape}" if shape is not None else f"{outputs}"
        raise ValueError(
            f"`apply_fn` must return outputs [{n}, k] of at least two classes, but "
            f"they were {was}. Of one output f make the two (-f, f)."
        )
    if not jnp.issubdtype(outputs.dtype, jnp.floating):
        raise ValueError(
            "`apply_fn` must return floating-point outputs, before the argmax, but "
            f"they had dtype {outputs.dtype}."
        )
    integer = jnp.issubdtype(jnp.result_type(y), jnp.integer)
    if np.shape(y) != (n,) or not integer:
        raise ValueError(
            f"`y` must be a vector of class indices, but has shape {np.shape(y)} and "
            f"dtype {jnp.result_type(y)}. Of one-hot rows pass `y.argmax(-1)`."
        )
    if not isinstance(y, Tracer):
        values = np.asarray(y)
        if values.min() < 0 or values.max() >= shape[1]:
            raise ValueError(
                f"`y` must hold class indices in [0, {shape[1]}), but goes from "
                f"{values.min()} to {values.max()}. Number the classes from 0."
            )


def _kernels(params, select):
    """The kernels by path."""
    if select is None:
        leaves = select_leaves(params, lambda _: True)
        chosen = {path: leaf for path, leaf in leaves.items() if np.ndim(leaf) >= 2}
    else:
        chosen = select_leaves(params, select)
    is_kernel = lambda leaf: np.ndim(leaf) >= 2 and np.size(leaf)
    others = [path for path, leaf in chosen.items() if not is_kernel(leaf)]
    if others or not chosen:
        raise ValueError(
            "`select` must choose kernels, arrays of at least two axes with outputs on "
            f"the last one, and not empty, but chose {others or 'none'}."
        )
    return chosen


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _measures(apply_fn, paths, batch_size, params, initial, x, y, quantile):
    kernels, starts = (_matrices(tree, paths) for tree in (params, initial))
    moves = [now - then for now, then in zip(kernels, starts, strict=True)]
    outputs = map_examples(lambda x: apply_fn(params, x), x, batch_size=batch_size)
    margins = _margins(outputs, y)
    quantile = jnp.asarray(quantile, margins.dtype)
    # A traced quantile out of range would be that of the range's end.
    in_range = (quantile >= 0) & (quantile <= 1)
    margin = jnp.quantile(margins, jnp.where(in_range, quantile, jnp.nan))
    found = _weight_norms(kernels, moves)
    found["path_norm"] = _path_norm(apply_fn, params, x)
    log_margin = jnp.log(jnp.maximum(margin, 0))
    divided = lambda value: jnp.where(margin <= 0, jnp.inf, value)
    less = lambda name, power: divided(found[name] - power * log_margin)
    root = 2 / len(paths)
    over = {
        "log_spectral_complexity": less("log_spectral_complexity", 1),
        "log_prod_of_spec": less("log_prod_of_spec", 2),
        "log_prod_of_fro": less("log_prod_of_fro", 2),
        "log_sum_of_spec": less("log_sum_of_spec", root),
        "log_sum_of_fro": less("log_sum_of_fro", root),
        "path_norm": divided(found["path_norm"] / margin**2),
    }
    num_params = sum(jnp.size(leaf) for leaf in jax.tree.leaves(params))
    return {
        "num_params": jnp.asarray(num_params, margin.dtype),
        "margin": margin,
        "inverse_margin": divided(1 / margin**2),
        **found,
        "log_spec_orig_main": less("log_spec_orig_main", 2),
        "log_spec_init_main": less("log_spec_init_main", 2),
        **{f"{name}_over_margin": value for name, value in over.items()},
    }


def _weight_norms(kernels, moves):
    """What needs no margin, and the two main terms before they are divided by it."""
    logs = lambda norm, matrices: jnp.stack([_log_norm(m, norm) for m in matrices])
    spec, fro = logs(_spectral, kernels), logs(jnp.linalg.norm, kernels)
    spec_move, fro_move = logs(_spectral, moves), logs(jnp.linalg.norm, moves)
    depth = len(kernels)
    # The other layers' norms, not the product over one's own: a zero layer may not
    # make 0 / 0.
    others = jnp.sum(jnp.where(jnp.eye(depth, dtype=bool), 0, spec[None, :]), axis=1)
    ratios = jnp.where(spec == -jnp.inf, -jnp.inf, fro - spec)
    columns = logs(_column_sum, moves) + others
    sum_of = lambda log_norms: jnp.sum(jnp.exp(2 * log_norms))
    found = {
        "param_norm": sum_of(fro),
        "fro_dist": sum_of(fro_move),
        "dist_spec_init": sum_of(spec_move),
        "sum_of_squared_spec": sum_of(spec),
        "fro_over_spec": sum_of(ratios),
        "log_spec_orig_main": jax.nn.logsumexp(2 * (fro + others)),
        "log_spec_init_main": jax.nn.logsumexp(2 * (fro_move + others)),
        "log_spectral_complexity": 1.5 * jax.nn.logsumexp(columns / 1.5),
    }
    for name, norms in (("spec", spec), ("fro", fro)):
        product = 2 * jnp.sum(norms)
        found[f"log_prod_of_{name}"] = product
        found[f"log_sum_of_{name}"] = np.log(depth) + product / depth
    return found


def _matrices(tree, paths):
    """The kernels as matrices ``[inputs, outputs]``, in at least single precision."""
    leaves = select_leaves(tree, lambda path: path in paths)
    wide = lambda a: jnp.asarray(a, jnp.promote_types(jnp.result_type(a), jnp.float32))
    return [wide(leaves[p]).reshape(-1, leaves[p].shape[-1]) for p in paths]


def _log_norm(matrix, norm):
    """Logarithm of a norm, on the scale of the largest entry; -inf for zeros."""
    scale = jnp.max(jnp.abs(matrix))
    scale = jnp.where(jnp.isfinite(scale) & (scale > 0), scale, 1)
    return jnp.log(scale) + jnp.log(norm(matrix / scale))


def _spectral(matrix):
    return jnp.linalg.svd(matrix, compute_uv=False)[0]


def _column_sum(matrix):
    return jnp.sum(jnp.linalg.norm(matrix, axis=0))


def _margins(outputs, y):
    """Output of the class less the largest other one."""
    outputs = outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))
    own = y[:, None] == jnp.arange(outputs.shape[1], dtype=y.dtype)[None, :]
    rest = jnp.max(jnp.where(own, -jnp.inf, outputs), axis=1)
    # A traced label that is no class has no margin, and shows it.
    known = jnp.where(jnp.any(own, axis=1), 0, jnp.nan)
    return jnp.sum(jnp.where(own, outputs, 0), axis=1) + known - rest


def _path_norm(apply_fn, params, x):
    """Outputs of the squared weights for an input of ones, added up."""
    wide = lambda a: jnp.asarray(a, jnp.promote_types(jnp.result_type(a), jnp.float32))
    squares = jax.tree.map(lambda a: wide(a) ** 2, params)
    return jnp.sum(apply_fn(squares, jnp.ones_like(x[:1])))
