"""A trained network made small: fewer nodes, fewer levels, fewer bits."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors.numpy import save as to_safetensors

from jaxtheory import bounds
from jaxtheory._types import ApplyFn, Bound, Params
from jaxtheory.batching import check_count, check_function, check_number
from jaxtheory.compression._file import encode_network, load_compressed, write_file
from jaxtheory.compression._nodes import prune_nodes
from jaxtheory.compression._quantise import quantise, restore

# By rounding, at most: 16 levels of a normal law leave .098. Larger errors are left to
# the nodes: what they take, fine-tuning can give back.
_LEVEL_ERROR = 0.12
# Errors that are tried for a size: each takes its neighbour's place within 4 %.
_ERRORS = np.geomspace(0.01, 0.99, 119)

FineTune = Callable[[Params, dict[str, int]], Params]


class Compressed(NamedTuple):
    """A smaller network, and what became of the larger one.

    Attributes:
        params: Parameters with fewer nodes, exactly those in the file.
        widths: Nodes that each hidden layer has now: the sizes of the network to build,
            ``models.MLP(tuple(found.widths.values()), ...)``.
        size_before: Bytes of the parameters given, as safetensors.
        size_after: Bytes of the file that was written.
        target_error: The error that was allowed; with `target_size`, the one chosen.
        node_error: ``|W' - W| / |W|`` of each hidden layer's kernel, with the columns
            of the nodes that went at zero.
        level_error: The same of each array, by rounding to levels.
        bound: The certificate of the file, where data were given.
    """

    params: Params
    widths: dict[str, int]
    size_before: int
    size_after: int
    target_error: float
    node_error: dict[str, float]
    level_error: dict[str, float]
    bound: Bound | None


def compress(
    params: Mapping[str, Any],
    path: str | os.PathLike,
    *,
    layers: Sequence[str],
    target_error: float | None = None,
    target_size: int | None = None,
    fine_tune: FineTune | None = None,
    overwrite: bool = False,
    build: Callable[[dict[str, int]], ApplyFn] | None = None,
    data: tuple[Any, Any] | None = None,
    delta: float = 0.05,
) -> Compressed:
    r"""Make a trained network small, and write it as a file that is smaller still.

    Nodes whose incoming weights are smallest are left out (`prune_nodes`), the others
    rounded to few levels (`quantise`), and these arithmetically coded
    (`save_compressed`). With ``W'`` the kernel of a hidden layer, columns left out at
    zero,

    .. math:: |W' - W|_F \le \epsilon |W|_F

    of which rounding takes at most .12, or half of ``epsilon^2`` if that is less, as it
    does in every other array, as far as 256 levels allow. What a network computes may
    change more, or less, than its weights do: measure it.

    Args:
        params: Parameters of a Flax module, as for `prune_nodes`.
        path: The file to write; ``load_compressed(path)`` reads it.
        layers: Names of the layers from input to output.
        target_error: ``epsilon``, in (0, 1); or
        target_size: bytes that the file may have; the smallest error on a grid that
            makes it fit.
        fine_tune: ``fine_tune(params, widths) -> params`` trains the network with fewer
            nodes before it is rounded; the error is then that of the nodes before and
            of the rounding after. With `target_size` called for each error that is
            tried, eight in all.
        overwrite: Whether to replace a file that is there.
        build: ``build(widths) -> apply_fn``, the model of other widths, for the bound.
        data: ``(x, y)``, the examples that the bound counts. They may be those that
            the network was trained on: the whole network is in the file. To beat
            guessing, the file must have fewer bits than there are examples, or so.
        delta: Probability that the bound may fail.

    Returns:
        The smaller network. Its parameters have other shapes: build the model with
        ``widths``.

    Raises:
        ValueError: Not one of the two targets is given, or it is out of range; no error
            on the grid makes the file small enough; one of `build` and `data` is given
            without the other; and as the functions named.

    Example:
        >>> import tempfile, jax, jax.numpy as jnp
        >>> from jaxtheory import compression, models
        >>> x = jnp.ones((1, 64))
        >>> params = models.MLP((64,), num_outputs=10).init(jax.random.key(0), x)
        >>> layers = ("layer_1", "output")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     found = compression.compress(
        ...         params, f"{folder}/small", layers=layers, target_size=1900
        ...     )
        >>> found.size_before > 10 * found.size_after, found.size_after <= 1900
        (True, True)
        >>> small = models.MLP(tuple(found.widths.values()), num_outputs=10)
        >>> small.apply(found.params, x).shape
        (1, 10)

    References:
        Han et al., arXiv:1510.00149 (prune, quantise, code); Barsbey et al.,
        arXiv:2106.03795; Wan et al., arXiv:2306.08125 (nodes and a relative error).
    """
    if (target_error is None) == (target_size is None):
        raise ValueError(
            "Give either `target_error` or `target_size`, but "
            f"{'neither was' if target_size is None else 'both were'} given."
        )
    if (build is None) != (data is None):
        raise ValueError("`build` and `data` go together: the bound needs both.")
    for name, function in {"fine_tune": fine_tune, "build": build}.items():
        if function is not None:
            check_function(name, function)
    attempt = lambda error: _attempt(params, layers, float(error), fine_tune)
    if target_size is not None:
        found = _fitting(attempt, check_count(target_size=target_size))
    else:
        must = "strictly between 0 and 1"
        check_number("target_error", target_error, lambda e: 0 < e < 1, must)
        found = attempt(target_error)
    error, pruned, tuned, quantised, content = found
    write_file(path, content, overwrite)
    bound = None
    if build is not None and data is not None:
        apply_fn = build(pruned.widths)
        bound = bounds.compression(apply_fn, load_compressed, path, *data, delta=delta)
    return Compressed(
        load_compressed(path),
        pruned.widths,
        _safetensors_size(params),
        len(content),
        float(error),
        pruned.relative_error,
        _errors(tuned, quantised),
        bound,
    )


def _attempt(params, layers, error, fine_tune):
    """What an error makes of the network, and the bytes of its file."""
    rounding = min(_LEVEL_ERROR, error / np.sqrt(2))
    share = float(np.sqrt(error**2 - rounding**2))
    pruned = prune_nodes(params, layers=layers, relative_error=share)
    tuned = pruned.params
    if fine_tune is not None:
        tuned = fine_tune(tuned, pruned.widths)
    quantised = quantise(tuned, relative_error=float(rounding))
    return error, pruned, tuned, quantised, encode_network(quantised)


def _fitting(attempt, target_size):
    """The smallest error of the grid that makes a file small enough, by halving."""
    low, high = 0, len(_ERRORS) - 1
    best = attempt(_ERRORS[high])
    if len(best[-1]) > target_size:
        raise ValueError(
            f"`target_size` must be reached with an error of {_ERRORS[-1]:.2g}, but "
            f"there are {len(best[-1])} bytes left then, not {target_size}."
        )
    while low < high:
        middle = (low + high) // 2
        found = attempt(_ERRORS[middle])
        if len(found[-1]) <= target_size:
            best, high = found, middle
        else:
            low = middle + 1
    return best


def _errors(params, quantised):
    """The relative error of each array, by its path."""
    found = {}
    rounded = jax.tree.leaves(restore(quantised))
    named = jax.tree_util.tree_leaves_with_path(params)
    for (path, leaf), other in zip(named, rounded, strict=True):
        array = np.asarray(leaf, np.float64)
        norm = np.linalg.norm(array)
        error = np.linalg.norm(np.asarray(other, np.float64) - array)
        found[jax.tree_util.keystr(path)] = float(error / norm if norm else error)
    return found


def _safetensors_size(params):
    """Bytes of a file of all arrays as they are."""
    named = jax.tree_util.tree_leaves_with_path(params)
    arrays = {jax.tree_util.keystr(path): np.array(leaf) for path, leaf in named}
    return len(to_safetensors(arrays))
