"""What has to be known of a model before its kernels: initialisers and positions."""

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxtheory._types import Estimate
from jaxtheory.kernels._infinite_moments import Moments
from jaxtheory.kernels._infinite_rules import flattened, input_record
from jaxtheory.kernels._infinite_values import (
    Activation,
    Known,
    Layout,
    NeedsPositions,
    Weight,
)
from jaxtheory.kernels._infinite_walk import Walk
from jaxtheory.kernels._initial import (
    Initial,
    given_deviations,
    initial,
    is_weight,
    parameters,
    quantiles,
)


@dataclasses.dataclass(frozen=True)
class _Init:
    """``init(key, x)`` of a module; equal for equal modules."""

    module: Any

    def __call__(self, key, x):
        return self.module.init(key, x)


@dataclasses.dataclass(frozen=True)
class _Apply:
    """``apply(variables, x)`` of a module; equal for equal modules."""

    module: Any

    def __call__(self, variables, x):
        return self.module.apply(variables, x)


class Model(NamedTuple):
    """How to draw a model's variables, and how to apply it.

    Attributes:
        init: ``init(key, x) -> variables``.
        apply: ``apply(variables, x) -> outputs``.
    """

    init: Callable[[Any, Any], Any]
    apply: Callable[[Any, Any], Any]

    def variables(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Shapes of the variables, for examples of that shape."""
        example = jax.ShapeDtypeStruct((1, *shape), dtype)
        return jax.eval_shape(self.init, jax.random.key(0), example)


class Leaf(NamedTuple):
    """What is known of a parameter while the model is traced.

    Attributes:
        path: Its key path.
        constant: The number that all its entries start at, or None.
        fixed: Whether it is used as it starts, the same under all keys.
        given: Whether its deviation was given.
    """

    path: str
    constant: float | None
    fixed: bool
    given: bool


class Setup(NamedTuple):
    """What the initialisers do.

    Attributes:
        leaves: The parameters, in the order of the pytree.
        stds: Deviations of those that are random, by key path.
        fixed: Values of those that start at constant arrays.
        estimates: Deviations with standard errors.
        initial: More of those whose initialisers were drawn from.
    """

    leaves: tuple[Leaf, ...]
    stds: dict[str, Any]
    fixed: dict[str, Any]
    estimates: dict[str, Estimate]
    initial: dict[str, Initial]


class Plan(NamedTuple):
    """What a first walk found out.

    Attributes:
        diagonal: Whether covariances at equal positions are enough.
        factors: Each parameter met, and the root of its fan-in if that is not in its
            deviation.
        first: Parameters that meet known inputs.
    """

    diagonal: bool
    factors: tuple[tuple[str, float], ...]
    first: tuple[str, ...]


def as_model(module: Any) -> Model:
    """The pair of functions of a module, or a pair as it is.

    Args:
        module: A Linen module, or ``(init, apply)``.

    Returns:
        The pair.

    Raises:
        ValueError: It is neither.
    """
    if isinstance(module, tuple) and len(module) == 2 and all(map(callable, module)):
        return Model(*module)
    if isinstance(module, type) or not all(
        callable(getattr(module, name, None)) for name in ("init", "apply")
    ):
        is_class = isinstance(module, type)
        was = f"the class {module.__name__}" if is_class else type(module).__name__
        raise ValueError(
            "`module` must be a Linen module, or a pair of functions `(init, apply)` "
            f"with `init(key, x)` and `apply(variables, x)`, but is a {was}."
            f"{' Make a module of it by calling it.' if is_class else ''}"
        )
    try:
        hash(module)
    except TypeError:
        # A module with a list in it (`nn.Sequential([...])`) has no value to compare:
        # its methods compare by identity, and equal modules compile again.
        linen: Any = module
        return Model(linen.init, linen.apply)
    return Model(_Init(module), _Apply(module))


def precision() -> str:
    """The widest floating-point type, which kernels have."""
    return jax.dtypes.canonicalize_dtype(float).name


def set_up(model: Model, x: Any, key: Any, weight_std: Any, bias_std: Any) -> Setup:
    """Find out what each parameter starts as, with the caller's word for some.

    Args:
        model: The model.
        x: Inputs ``[n, ...]``; only their shape and type matter.
        key: A typed key.
        weight_std: As `infinite_width` takes it.
        bias_std: Likewise.

    Returns:
        What the initialisers do.

    Raises:
        ValueError: A deviation is none or names no parameter, or the model has batch
            statistics, or draws parameters of a mean other than zero.
    """
    shapes = parameters(model.variables(x.shape[1:], x.dtype))
    _check_variables(shapes)
    sizes = {path: leaf.shape for path, leaf in shapes.items()}
    given = given_deviations(weight_std, bias_std, sizes)
    drawn = [path for path in shapes if path not in given]
    with jax.ensure_compile_time_eval():  # also where the caller is being compiled
        example = jnp.zeros((1, *x.shape[1:]), x.dtype)
        found = initial(model.init, example, key, drawn)
        leaves, estimates = [], {}
        for path in shapes:
            if path in given:
                # A bias of deviation zero starts at zero.
                constant = None if given[path] else 0.0
                leaves.append(Leaf(path, constant, not given[path], True))
                estimates[path] = Estimate(jnp.asarray(given[path]), jnp.zeros(()), 0)
            else:
                one = found[path]
                _check_start(path, one)
                leaves.append(Leaf(path, one.constant, one.fixed, False))
                estimates[path] = one.std
        random = [leaf.path for leaf in leaves if not leaf.fixed]
        stds = {p: jnp.asarray(estimates[p].value, precision()) for p in random}
        fixed = [leaf.path for leaf in leaves if leaf.fixed and leaf.constant is None]
        values = parameters(jax.jit(model.init)(key, example)) if fixed else {}
    arrays = {path: values[path] for path in fixed}
    return Setup(tuple(leaves), stds, arrays, estimates, found)


def _check_start(path, one):
    """Raise if a matrix of weights starts at a constant."""
    if one.constant is not None and is_weight(path, one.shape):
        raise ValueError(
            f"`module` has no infinite-width kernel: {path!r} starts at the constant "
            f"{one.constant}, so that at first nothing depends on its inputs. "
            "Initialise it at random, or pass its deviation in `weight_std`."
        )


def _check_variables(shapes):
    """Raise if the model normalises by statistics of a batch."""
    stats = [path for path in shapes if path.startswith("batch_stats/")]
    if stats:
        layers = sorted({p.split("/", 1)[1].rpartition("/")[0] for p in stats})
        raise ValueError(
            "`module` has no infinite-width kernel: BatchNorm normalises each example "
            "by statistics of others, so that the kernel of two examples would depend "
            f"on the whole batch (layers {layers}). Use a normalisation over channels "
            "(`nn.LayerNorm`, `nn.RMSNorm`), or none."
        )


def first_layer_tables(
    model: Model, setup: Setup, plan: Plan, x: Any, key: Any
) -> dict[str, Any]:
    """Quantiles of the first layer's parameters that are not Gaussian.

    Args:
        model: The model.
        setup: What its initialisers do.
        plan: Which parameters meet the inputs.
        x: Inputs ``[n, ...]``; only their shape and type matter.
        key: A typed key.

    Returns:
        For each of them, by key path, its quantiles at equal steps.

    Raises:
        ValueError: Its entries are not independent, or not symmetric about zero.
    """
    given = [path for path in plan.first if path not in setup.initial]
    tables = {}
    with jax.ensure_compile_time_eval():  # also where the caller is being compiled
        example = jnp.zeros((1, *x.shape[1:]), x.dtype)
        found = setup.initial | initial(model.init, example, key, given)
        for path in plan.first:
            one = found[path]
            if one.fixed or one.is_gaussian:
                continue
            size = math.prod(one.shape)
            key = jax.random.fold_in(key, len(tables))
            table = quantiles(model.init, path, size, example, key)
            skewed = float(jnp.std(table + table[::-1])) > 0.05
            if skewed or not one.is_independent:
                what = "skewed" if skewed else "not independent of each other"
                raise ValueError(
                    f"`module` initialises {path!r}, in the first layer, with entries "
                    f'that are {what}, for which `first_layer="exact"` has no draws. '
                    'Pass `first_layer="gaussian"`.'
                )
            tables[path] = table.astype(precision())
    return tables


@functools.lru_cache(maxsize=64)
def make_plan(
    model: Model,
    leaves: tuple[Leaf, ...],
    shape: tuple[int, ...],
    dtype: str,
    precision: str,
) -> Plan:
    """Walk through the model for shapes alone, for what has to be known before.

    Args:
        model: The model.
        leaves: Its parameters.
        shape: Shape of one example.
        dtype: Type of the inputs.
        precision: Type of the kernels.

    Returns:
        What the walk found out.

    Raises:
        ValueError: A layer has no limit.
    """
    shapes = parameters(model.variables(shape, dtype))
    arrays = [leaf.path for leaf in leaves if leaf.fixed and leaf.constant is None]
    fixed = {path: shapes[path] for path in arrays}
    scalar = jax.ShapeDtypeStruct((), precision)
    stds = {leaf.path: scalar for leaf in leaves if not leaf.fixed}
    sizes = {*shape, *(size for leaf in shapes.values() for size in leaf.shape)}
    # As many examples as no other axis has elements, so that they are told apart.
    number = next(n for n in itertools.count(2) if n not in sizes)
    layers = {}
    for diagonal in (True, False):

        def kernels(x, stds, fixed, diagonal=diagonal):
            moments = Moments(Layout(len(x), None, diagonal), None, only_shapes=True)
            kernels, walk = walk_through(model, leaves, moments, x, stds, fixed)
            layers.update(walk.layers)
            return kernels

        with contextlib.suppress(NeedsPositions):
            jax.eval_shape(
                kernels, jax.ShapeDtypeStruct((number, *shape), dtype), stds, fixed
            )
            break
    return Plan(
        diagonal,
        tuple((path, layer.factor) for path, layer in layers.items()),
        tuple(path for path, layer in layers.items() if layer.first),
    )


def walk_through(
    model: Model,
    leaves: tuple[Leaf, ...],
    moments: Moments,
    x: Any,
    stds: dict[str, Any],
    fixed: dict[str, Any],
) -> tuple[tuple[Any, Any], Walk]:
    """Trace the model, walk through it, and take the kernels of its outputs.

    Args:
        model: The model.
        leaves: Its parameters.
        moments: Integrals over units; knows how covariances lie.
        x: Inputs ``[total, ...]``.
        stds: Deviations of the random parameters.
        fixed: Values of those that start at constant arrays.

    Returns:
        The kernels ``(nngp, ntk)``, each ``[n1, n2]``, and the walk.

    Raises:
        ValueError: A layer has no limit, or the outputs are not ``[n, k]``.
    """
    tree = model.variables(x.shape[1:], x.dtype)
    program = jax.make_jaxpr(model.apply)(tree, jax.ShapeDtypeStruct(x.shape, x.dtype))
    shapes = parameters(tree)
    values: list[Any] = []
    for leaf in leaves:
        shape = tuple(shapes[leaf.path].shape)
        if leaf.constant is not None:
            array = np.full((1,) * len(shape), leaf.constant, shapes[leaf.path].dtype)
            values.append(Known(array, shape))
        elif leaf.fixed:
            values.append(Known(fixed[leaf.path], shape))
        else:
            values.append(Weight(leaf.path, 1.0, shape, shape))
    values.append(Known(x, x.shape, by_example=True))
    record = input_record(moments.layout, x.reshape(len(x), -1))
    given = frozenset(leaf.path for leaf in leaves if leaf.given)
    walk = Walk(moments, record, stds, given)
    consts = [Known(c, tuple(jnp.shape(c))) for c in program.consts]
    outputs = walk.run(program.jaxpr, consts, values)
    return _output_kernels(walk, outputs), walk


def _output_kernels(walk, outputs):
    """Kernels ``[n1, n2]`` of the model's outputs."""
    if len(outputs) != 1:
        raise ValueError(
            "`module` must return one array of outputs [n, k], but returned "
            f"{len(outputs)} arrays. Return the outputs alone."
        )
    (output,) = outputs
    if not isinstance(output, Activation):
        raise ValueError(
            "`module` must return outputs of a layer with weights, but in the limit of "
            "infinite width its outputs are known from the inputs alone."
        )
    if output.positions and not output.flat:
        raise ValueError(
            "`module` must return outputs [n, k], but they have positions of sizes "
            f"{output.positions} between examples and channels. Average or flatten "
            "them before the last layer."
        )
    record = flattened(walk.moments, output)
    return record.nngp, record.ntk
