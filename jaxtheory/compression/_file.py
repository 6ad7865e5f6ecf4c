"""Networks in as few bytes as they are worth: a file that restores every bit of one.

Two kinds of file:

- of a subspace: its seed, dimension and levels, and the symbols of ``u``;
- of a network: names, shapes and dtypes of its arrays, levels and symbols of each.

Both begin with ``JT``, the kind, a check sum of the file and one of the parameters that
it restores; numbers have seven bits a byte, levels are of half precision, and symbols
are arithmetically coded with how often each occurs.
"""

import binascii
import json
import math
import os
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxtheory._types import Params
from jaxtheory.compression._quantise import MOST_LEVELS, Quantised, restore
from jaxtheory.compression._range_coder import MOST, Decoder, Encoder
from jaxtheory.compression._subspace import InitFn, Subspace, random_subspace

_MAGIC = b"JT"
# The second character of a kind changes with its format.
_SEEDED, _GIVEN, _NETWORK = 0x11, 0x21, 0x31
_SUM = 2  # bytes of a check sum


class _Damaged(Exception):
    """What is in a file cannot be what was written."""


def save_compressed(
    path: str | os.PathLike,
    quantised: PyTree,
    *,
    subspace: Subspace | None = None,
    start: Params | None = None,
    overwrite: bool = False,
) -> int:
    """Write a network in as few bytes as its numbers are worth.

    Of a network in a subspace the file holds the seed, the dimension, the levels and
    the arithmetically coded symbols of ``u``: all that was chosen on data. What it does
    not hold is code: the initialisation and the model. Of any other network it holds
    all quantised arrays, with their names and shapes.

    Args:
        path: Where to write.
        quantised: What `quantise` returned: of nested dictionaries of arrays, or, with
            `subspace`, of the coordinates ``u [dim]``.
        subspace: The subspace of ``u``.
        start: What stood for the subspace's ``theta0`` in training, if something did:
            it is not in the file, and reading it again needs it.
        overwrite: Whether to replace a file that is there.

    Returns:
        The length of the file in bytes.

    Raises:
        ValueError: There is a file already, or no folder; `quantised` is something
            else.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> from jaxtheory import compression
        >>> params = {"kernel": jnp.array([[0.0, 1.0], [1.0, 0.0]])}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = f"{folder}/network.jt"
        ...     quantised = compression.quantise(params, num_levels=2)
        ...     num_bytes = compression.save_compressed(file, quantised)
        ...     same = compression.load_compressed(file)
        >>> num_bytes < 100, same["kernel"].tolist()
        (True, [[0.0, 1.0], [1.0, 0.0]])

    References:
        Martin, "Range encoding", Video and Data Recording Conference 1979; Lotfi et
        al., arXiv:2211.13609 (what the file of a subspace holds).
    """
    if subspace is None:
        if start is not None:
            raise ValueError("`start` goes with a `subspace`, but there is none.")
        content = encode_network(quantised)
    else:
        kind = _SEEDED if start is None else _GIVEN
        body = _subspace_body(quantised, subspace)
        content = _content(kind, body, subspace.params(quantised.array(), start))
    write_file(path, content, overwrite)
    return len(content)


def encode_network(quantised: PyTree) -> bytes:
    """What the file of a whole network holds."""
    body = _network_body(quantised)
    return _content(_NETWORK, body, restore(quantised))


def _content(kind, body, params):
    """Both check sums before what is coded."""
    body = _check_sum(_bytes_of(params)) + body
    return _MAGIC + bytes([kind]) + _check_sum([body]) + body


def load_compressed(
    path: str | os.PathLike,
    *,
    init_fn: InitFn | None = None,
    start: Params | None = None,
) -> Params:
    """Read a network again, the same to the last bit.

    Args:
        path: What `save_compressed` wrote.
        init_fn: The initialisation of the subspace, for a file of one.
        start: What stood for its ``theta0``, if that was given when the file was
            written.

    Returns:
        The parameters.

    Raises:
        ValueError: The file is missing, of another program, or damaged; `init_fn` or
            `start` are missing or not needed; or they, or this machine, give another
            ``theta0`` than when it was written.
    """
    path = Path(path)
    kind, body = _read(path)
    _check_needed(path, kind, init_fn, start)
    held, body = body[:_SUM], body[_SUM:]
    decode = _network_of if kind == _NETWORK else _coordinates_of
    try:
        found: Any = decode(body)
    except (_Damaged, zlib.error, ValueError, TypeError, KeyError) as error:
        raise _damaged(path, error) from error
    if kind == _NETWORK:
        params = restore(found)
    else:
        seed, dim, u = found
        subspace = random_subspace(init_fn or _nothing, dim=dim, seed=seed)
        params = subspace.params(u.array(), start)
    if _check_sum(_bytes_of(params)) != held:
        raise ValueError(
            f"`path` {str(path)!r} must restore the parameters that it was written "
            "with, but restores others: `init_fn` or `start` are not the same, or draw "
            "other numbers on this machine, with these versions or in this precision."
        )
    return params


def _nothing(key):
    """Stands for an initialisation that is not used."""
    raise AssertionError


def write_file(path: str | os.PathLike, content: bytes, overwrite: bool) -> None:
    """Write a file, complete or not at all over another one."""
    path = Path(path)
    try:
        if overwrite:
            temporary = path.with_name(path.name + ".tmp")
            temporary.write_bytes(content)
            os.replace(temporary, path)
            return
        with path.open("xb") as file:
            file.write(content)
    except FileExistsError as error:
        raise ValueError(
            f"`path` must be free, but {str(path)!r} is there already. Pass another "
            "one, or `overwrite=True`."
        ) from error
    except OSError as error:
        raise ValueError(
            f"`path` must be a file that can be written, but {str(path)!r} is not "
            f"({error})."
        ) from error


def _read(path):
    """Kind and body of a file, after the check sum."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"`path` must be a file that can be read, but {str(path)!r} is not "
            f"({error})."
        ) from error
    begin = len(_MAGIC) + 1
    if content[: len(_MAGIC)] != _MAGIC or len(content) < begin + 2 * _SUM:
        raise ValueError(
            f"`path` must be a file of `save_compressed`, but {str(path)!r} is none."
        )
    kind, held, body = content[2], content[begin:][:_SUM], content[begin + _SUM :]
    if kind not in (_SEEDED, _GIVEN, _NETWORK):
        raise ValueError(
            f"`path` {str(path)!r} has the kind {kind:#x}, which this version does not "
            "read. It is of a newer one, or damaged."
        )
    if _check_sum([body]) != held:
        raise _damaged(path, "its check sum is another one")
    return kind, body


def _check_needed(path, kind, init_fn, start):
    """Raise unless what the file does not hold is given, and nothing else."""
    needed = {_SEEDED: "init_fn", _GIVEN: "start", _NETWORK: None}[kind]
    for name, value in {"init_fn": init_fn, "start": start}.items():
        if (value is not None) == (name == needed):
            continue
        needs = "must be given" if name == needed else "must be left out"
        raise ValueError(
            f"`{name}` {needs}: {str(path)!r} is a file of "
            + {
                _SEEDED: "a subspace through an initialisation that a seed draws.",
                _GIVEN: "a subspace through parameters that were given.",
                _NETWORK: "all of a network.",
            }[kind]
        )


def _subspace_body(quantised, subspace):
    if not isinstance(quantised, Quantised) or quantised.symbols.ndim != 1:
        raise ValueError(
            "`quantised` must be the `Quantised` coordinates [dim] of the subspace, "
            f"but is of type {type(quantised).__name__}. Use `quantise(u, ...)`."
        )
    if len(quantised.symbols) != subspace.dim:
        raise ValueError(
            f"`quantised` must hold the {subspace.dim} coordinates of `subspace`, but "
            f"holds {len(quantised.symbols)}."
        )
    num_levels = len(quantised.levels)
    coder = Encoder()
    coder.sequence(quantised.symbols, num_levels)
    numbers = (subspace.seed, subspace.dim, num_levels)
    head = b"".join(map(_varint, numbers))
    return head + _half(quantised.levels) + coder.finish()


def _coordinates_of(body):
    """Seed, dimension and coordinates."""
    seed, body = _number(body)
    dim, body = _number(body)
    num_levels, body = _number(body)
    levels, body = _levels_of(body, num_levels)
    if not (seed < 2**32 and 0 < dim < MOST and len(levels)):
        raise _Damaged("its sizes are none")
    symbols = Decoder(body).sequence(dim, num_levels)
    return seed, dim, Quantised(symbols, levels, "float32")


def _network_body(quantised):
    named = _named(quantised)
    arrays, levels, coder = [], b"", Encoder()
    for path, array in named.items():
        shape, num_levels = array.symbols.shape, len(array.levels)
        arrays.append([path, shape, array.dtype, num_levels])
        levels += _half(array.levels)
        if array.symbols.size:
            coder.sequence(array.symbols.reshape(-1), num_levels)
    header = zlib.compress(json.dumps(arrays, separators=(",", ":")).encode(), 9)
    return _varint(len(header)) + header + levels + coder.finish()


def _network_of(body):
    """Nested dictionaries of `Quantised`."""
    size, body = _number(body)
    arrays = json.loads(zlib.decompress(body[:size]))
    body, levels = body[size:], []
    for *_, num_levels in arrays:
        held, body = _levels_of(body, num_levels)
        levels.append(held)
    coder, tree = Decoder(body), {}
    for (path, shape, dtype, num_levels), held in zip(arrays, levels, strict=True):
        size = math.prod(shape)
        if not 0 <= size < MOST or (size and not num_levels):
            raise _Damaged("its sizes are none")
        symbols = coder.sequence(size, num_levels) if size else np.zeros(0, int)
        *above, last = path
        branch = tree
        for part in above:
            branch = branch.setdefault(part, {})
        name = jnp.dtype(dtype).name
        branch[last] = Quantised(symbols.reshape(shape), held, name)
    return tree


def _named(quantised):
    """The arrays by their path of keys; raise unless all are in dictionaries."""
    is_leaf = lambda leaf: isinstance(leaf, Quantised)
    named = {}
    leaves = jax.tree_util.tree_leaves_with_path(quantised, is_leaf=is_leaf)
    for path, leaf in leaves:
        keys = [getattr(part, "key", None) for part in path]
        if not keys or not all(isinstance(key, str) for key in keys):
            where = jax.tree_util.keystr(path)
            raise ValueError(
                "`quantised` must be nested dictionaries with names as keys, or be "
                f"written with its `subspace`, but holds something at {where!r}."
            )
        if not is_leaf(leaf):
            raise ValueError(
                "`quantised` must hold `Quantised` arrays, but has a "
                f"{type(leaf).__name__} at {keys}. Use `quantise(params, ...)`."
            )
        named[tuple(keys)] = leaf
    if not named:
        raise ValueError("`quantised` must hold at least one array, but is empty.")
    return named


def _half(levels):
    return levels.astype("<f2").tobytes()


def _levels_of(body, num_levels):
    if not 0 <= num_levels <= MOST_LEVELS or len(body) < 2 * num_levels:
        raise _Damaged("it ends within its levels")
    levels = np.frombuffer(body[: 2 * num_levels], "<f2").astype(np.float32)
    return levels, body[2 * num_levels :]


def _varint(number):
    """Seven bits a byte, the lowest first; the eighth says that more follow."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes(out) + bytes([number])


def _number(body):
    """A number, and what is behind it."""
    number = 0
    for at, byte in enumerate(body[:6]):
        number |= (byte & 127) << (7 * at)
        if byte < 128:
            return number, body[at + 1 :]
    raise _Damaged("it ends within a number")


def _bytes_of(params: Any):
    """The bytes of each array, in the order of the pytree."""
    for leaf in jax.tree.leaves(params):
        yield np.ascontiguousarray(leaf).tobytes()


def _check_sum(parts):
    value = 0xFFFF
    for part in parts:
        value = binascii.crc_hqx(part, value)
    return value.to_bytes(_SUM, "big")


def _damaged(path, error):
    return ValueError(
        f"`path` {str(path)!r} must be complete, but is damaged ({error}). Put it back "
        "from a copy, or write it again."
    )
