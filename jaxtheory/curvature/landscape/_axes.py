"""Which axes of which parameters list the units of which layer."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Int, PyTree

from jaxtheory._types import Params

UnitAxes: TypeAlias = Mapping[str, tuple[str | None, ...]]
Permutations: TypeAlias = Mapping[str, Int[ArrayLike, " c"] | Sequence[int]]


def sequential_axes(
    params: Params, *, layers: Sequence[str] | None = None
) -> dict[str, tuple[str | None, ...]]:
    """Say which axes list the units of which layer, for a plain chain of layers.

    For MLPs and CNNs without branches: every layer has a ``kernel`` whose last axis
    lists its own units and whose last but one those of the layer before; all vectors of
    the layer (``bias``), and of norms that follow it (``scale``, ``bias``), list its
    units. The inputs of the first layer and the outputs of the last are not permuted.

    Where a convolution is flattened into a dense layer, the kernel has a row for every
    pixel and channel, channels fastest: `match_weights` moves the channels of all
    pixels alike. Pooling changes nothing. Networks with branches (residual ones) need
    the mapping written by hand, with one name for all axes that are added together.

    Args:
        params: Parameters of a Flax network, or like them: dictionaries of layers, each
            with a ``kernel``.
        layers: Names of layers and norms from the input to the output, as in
            `params` (``"layer_1"``; ``"block/Dense_0"`` where nested). May be left out
            where names say the order: one word with numbers, then ``output``, if any
            (`models.MLP`, `models.CNN`, ``nn.Sequential``, ``Dense_0, ...``), or
            ``Conv_0, ..., Dense_0, ...``.

    Returns:
        For each leaf, by its path (``"params/layer_1/kernel"``), the name of a layer or
        None for each axis.

    Raises:
        ValueError: There are less than two layers, their sizes do not chain, a norm
            stands before the first layer, `layers` names others than `params`, or it
            was left out and names do not say the order.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxtheory import models
        >>> model = models.MLP((4,), num_outputs=2)
        >>> params = model.init(jax.random.key(0), jnp.ones((1, 3)))
        >>> for path, axes in sequential_axes(params).items():
        ...     print(path, axes)
        params/layer_1/bias ('params/layer_1',)
        params/layer_1/kernel (None, 'params/layer_1')
        params/output/bias (None,)
        params/output/kernel ('params/layer_1', None)
    """
    modules = {}
    for path, leaf in leaves_by_path(params).items():
        module, _, name = path.rpartition("/")
        modules.setdefault(module, {})[name] = np.shape(leaf)
    order = _ordered(modules, layers)
    chain = [name for name in order if "kernel" in modules[name]]
    if len(chain) < 2:
        raise ValueError(
            "`params` must hold at least two layers with a 'kernel', but of "
            f"{order} those are {chain}. Without hidden units nothing can be permuted."
        )
    found, before, units = {}, None, None
    for name in order:
        if "kernel" in modules[name]:
            before, units = units, name if name != chain[-1] else None
        elif units is None:
            raise ValueError(
                f"`params` has {name!r}, without a 'kernel', before the first or after "
                f"the last layer in the order {order}. Pass `layers=` in the order "
                "from the input to the output."
            )
        for leaf, shape in modules[name].items():
            kernel = leaf == "kernel"
            axes = (before, units) if kernel else (units,)
            found["/".join(filter(None, (name, leaf)))] = _padded(name, axes, shape)
    _check_chain(modules, order)
    check_axes(found, params)
    return found


def _check_chain(modules, order):
    """Raise unless each layer takes what the one before gives, flattened or not."""
    before = None
    for name in order:
        shapes = modules[name]
        if "kernel" in shapes:
            shape = shapes["kernel"]
            if before is not None:
                length, (size, is_convolution) = shape[-2], before
                flattens = is_convolution and len(shape) == 2 and length % size == 0
                if length != size and not flattens:
                    raise ValueError(
                        f"`params` must be a chain of layers, but {name!r} takes "
                        f"{length} inputs where the layer before it has {size} units. "
                        "Pass `layers=` in the order from the input to the output, or "
                        "write the mapping out by hand."
                    )
            before = shape[-1], len(shape) > 2
        for leaf, shape in shapes.items():
            if before is not None and leaf != "kernel" and shape[-1:] != before[:1]:
                raise ValueError(
                    f"`params` has a leaf {leaf!r} of shape {shape} in {name!r}, a "
                    f"layer of {before[0]} units. Write the mapping out by hand."
                )


def _padded(name, axes, shape):
    """The names for all axes of a leaf: None for those of a convolution's window."""
    if len(shape) < len(axes):
        raise ValueError(
            f"`params` has a leaf of shape {shape} in the layer {name!r}, where at "
            f"least {len(axes)} axes belong. Write the mapping out by hand."
        )
    return (None,) * (len(shape) - len(axes)) + axes


def _ordered(modules, layers):
    """The modules from the input to the output."""
    if layers is None:
        _check_numbered(modules)
        number = lambda part: (0, int(part), "") if part.isdigit() else (1, 0, part)
        words = lambda name: [number(part) for part in re.split(r"(\d+)", name)]
        return sorted(modules, key=words)
    found = []
    for layer in layers:
        matches = [n for n in modules if n == layer or n.endswith(f"/{layer}")]
        if len(matches) != 1:
            raise ValueError(
                f"`layers` must name each a layer of `params`, but {layer!r} fits "
                f"{matches} of {sorted(modules)}."
            )
        found += matches
    if sorted(found) != sorted(modules):
        raise ValueError(
            f"`layers` must name every layer once, but names {found} of "
            f"{sorted(modules)}."
        )
    return found


def _check_numbered(modules):
    """Raise unless names say the order: equal widths would hide a wrong guess."""
    found = {name: re.search(r"\d", name) for name in modules}
    numbered = {name[: at.start()] for name, at in found.items() if at}
    last = [name for name, at in found.items() if not at]
    kinds = sorted(word.split("/")[-1] for word in numbered)
    one_word = len(kinds) == 1 or kinds == ["Conv_", "Dense_"]
    if not one_word or [name.split("/")[-1] for name in last] not in ([], ["output"]):
        raise ValueError(
            "`layers` must be given, because the names of layers do not say their "
            f"order: {sorted(modules)}. Pass them from the input to the output."
        )


def check_axes(axes: UnitAxes, params: Params) -> dict[str, int]:
    """Return how many units each name has; raise unless the axes fit.

    Args:
        axes: For each leaf by its path, one name or None for each axis.
        params: The parameters.

    Returns:
        For each name the length of its shortest axis. Longer ones are multiples of it:
        pixels times channels.

    Raises:
        ValueError: A path is not in `params`, a leaf has another number of axes, an
            axis is no multiple of the shortest one of its name, or no axis is named.
    """
    leaves = leaves_by_path(params)
    lengths: dict[str, list[tuple[int, str]]] = {}
    for path, names in axes.items():
        if path not in leaves:
            raise ValueError(
                f"`axes` names {path!r}, which is not in `params`: {sorted(leaves)}."
            )
        shape = np.shape(leaves[path])
        if len(names) != len(shape):
            raise ValueError(
                f"`axes[{path!r}]` must say something of each axis of the shape "
                f"{shape}, but was {names}."
            )
        for name, length in zip(names, shape, strict=True):
            if name is not None:
                lengths.setdefault(name, []).append((length, path))
    if not lengths:
        raise ValueError("`axes` must name at least one axis, but names none.")
    for name, found in lengths.items():
        shortest, where = min(found)
        for length, path in found:
            if length % shortest:
                raise ValueError(
                    f"`axes` gives {name!r} an axis of {length} in {path!r} and one of "
                    f"{shortest} in {where!r}, which must divide it. Name other axes, "
                    "or pass `layers=` in the right order."
                )
    return {name: min(found)[0] for name, found in lengths.items()}


def leaves_by_path(params: Params) -> dict[str, Any]:
    """The leaves of a pytree by their paths, such as ``"layer_1/kernel"``.

    Args:
        params: A pytree.

    Returns:
        Its leaves, in order.
    """
    found = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): v for p, v in found}


def permute_units(params: Params, axes: UnitAxes, permutations: Permutations) -> PyTree:
    """Put the units of a network into another order.

    Where `axes` describes all that touches the units, the function that the network
    computes stays the same, up to the order in which sums are taken.

    Args:
        params: Parameters.
        axes: For each leaf by its path, one name or None for each axis; see
            `sequential_axes`. Leaves that are not named stay as they are.
        permutations: By name, unit ``permutations[name][i]`` moves to place ``i``.
            Names that are missing stay in order.

    Returns:
        Parameters of the same structure.

    Raises:
        ValueError: `axes` does not fit `params`, or a permutation is not one of its
            units.

    Example:
        >>> import jax.numpy as jnp
        >>> axes = {"w": (None, "hidden"), "v": ("hidden",)}
        >>> params = {"w": jnp.array([[1.0, 2.0]]), "v": jnp.array([3.0, 4.0])}
        >>> turned = permute_units(params, axes, {"hidden": [1, 0]})
        >>> turned["w"].tolist(), turned["v"].tolist()
        ([[2.0, 1.0]], [4.0, 3.0])
    """
    sizes = check_axes(axes, params)
    for name, order in permutations.items():
        size = sizes.get(name)
        if size is None or sorted(np.asarray(order).tolist()) != list(range(size)):
            was = "of no named axis" if size is None else f"no order of {size} units"
            raise ValueError(
                f"`permutations[{name!r}]` is {was}. The names are {sorted(sizes)}."
            )

    def leaf(path, value):
        where = jax.tree_util.keystr(path, simple=True, separator="/")
        value = jnp.asarray(value)
        for axis, name in enumerate(axes.get(where, ())):
            if name is not None and name in permutations:
                order = entries(permutations[name], value.shape[axis])
                value = jnp.take(value, order, axis=axis)
        return value

    return jax.tree_util.tree_map_with_path(leaf, params)


def entries(order: Any, length: int) -> np.ndarray:
    """The order of an axis that lists pixels times units, units fastest.

    Args:
        order: The order of the units, ``[c]``.
        length: Length of the axis, a multiple of ``c``.

    Returns:
        The order of the axis, ``[length]``.
    """
    order = np.asarray(order)
    pixels = np.arange(length // len(order))
    return (pixels[:, None] * len(order) + order[None]).reshape(-1)
