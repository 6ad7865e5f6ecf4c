"""Kernels of structured parameters: products of Gram matrices, or formed gradients.

A parameter consumed at sites ``s`` has the gradient ``sum_s sum_t a_s[b, t, c] g_s[k,
b, t, f]``. Its kernel between examples ``i`` and ``j`` is the sum over pairs of sites
and positions of (Gram of inputs) times (Gram of cotangents), which never forms the
gradient; or the Gram of the gradients, formed from the same factors. Which is cheaper
depends on the numbers of positions, outputs and channels.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Outputs = Literal["trace", "diagonal", "full"]

# An entry of a Gram matrix or of a gradient that is written to memory and read again
# costs about as many multiply-adds of a large product (measured on AVX-512 cores).
_GRAM_ENTRY, _GRADIENT_ENTRY = 100.0, 40.0


class Factors(NamedTuple):
    """One site's gradient, ``left * right`` summed over positions.

    Attributes:
        left: ``[n, b, t, c]``, or ``[n, k, b, t, c]`` where `flipped`; for a lookup
            ``[n, b, t]``, the row at each position.
        right: ``[n, k, b, t, f]``, or ``[n, b, t, f]`` where `flipped`.
    """

    left: Any
    right: Any


class Member(NamedTuple):
    """A site within a group of sites that consume the same entries.

    Attributes:
        place: The site.
        num_positions: Its number of positions ``t``.
        flipped: Whether what it contracts is what the others leave free.
        is_lookup: Whether its left factor holds numbers of rows.
    """

    place: tuple[int, ...]
    num_positions: int
    flipped: bool
    is_lookup: bool


class Group(NamedTuple):
    """Sites that consume the same entries ``w[b, c, f]`` of one parameter.

    Attributes:
        leaf: The parameter.
        shape: Sizes ``b, c, f``.
        members: The sites.
    """

    leaf: int
    shape: tuple[int, int, int]
    members: tuple[Member, ...]

    @property
    def has_lookup(self) -> bool:
        """Whether one of its sites looks rows up, so that no gradient can be formed."""
        return any(member.is_lookup for member in self.members)


def group_sites(
    leaf: int,
    places: Sequence[tuple[int, ...]],
    positions: Sequence[int],
    lookups: Sequence[bool],
    shapes: Sequence[tuple[int, int, int]],
    entries: Sequence[np.ndarray] | None,
) -> list[Group] | None:
    """Sort the sites of one parameter by the entries that they consume.

    Args:
        leaf: The parameter.
        places: The sites.
        positions: Their numbers of positions.
        lookups: Which of them look rows up.
        shapes: Their sizes ``b, c, f``.
        entries: Indices ``[b, c, f]`` of the entries that each consumes; None for a
            single site.

    Returns:
        The groups, whose entries are disjoint; None if two sites overlap otherwise.
    """
    groups: list[tuple[np.ndarray | None, Group]] = []
    # Lookups first: a row number can stand on the left of a group alone.
    for number in sorted(range(len(places)), key=lambda i: not lookups[i]):
        place = places[number]
        index = None if entries is None else entries[number]
        member = Member(place, positions[number], False, lookups[number])
        for at, (base, group) in enumerate(groups):
            flipped = _relation(base, index)
            if flipped and member.is_lookup:
                return None
            if flipped is not None:
                members = (*group.members, member._replace(flipped=flipped))
                groups[at] = base, group._replace(members=members)
                break
        else:
            groups.append((index, Group(leaf, shapes[number], (member,))))
    used = [base.ravel() for base, _ in groups if base is not None]
    if used and len(np.unique(np.concatenate(used))) < sum(map(len, used)):
        return None
    return [group for _, group in groups]


def _relation(base, index):
    """False if the indices are the same, True if transposed, None if neither."""
    if np.array_equal(base, index):
        return False
    return True if np.array_equal(base, np.swapaxes(index, 1, 2)) else None


def cost(group: Group, n1: int, n2: int, k: int, outputs: Outputs) -> dict[str, float]:
    """Multiply-adds of both ways to a group's kernel, memory traffic included.

    Args:
        group: The group.
        n1: Examples in a chunk of rows.
        n2: Examples in a chunk of columns.
        k: Number of outputs.
        outputs: What is kept of the ``k x k`` block of two examples.

    Returns:
        The cost of ``"gram"`` and, unless the group looks rows up, of ``"form"``.
    """
    b, c, f = group.shape
    products = k * k if outputs == "full" else k
    kept = {"full": k * k, "diagonal": k, "trace": 1}[outputs]
    total = sum(member.num_positions for member in group.members)
    if b * c * total == 1:
        # The gradient is the cotangent, whose Gram matrix the product before it has.
        return {"gram": float(n1 * n2 * kept)}
    pairs = n1 * n2 * b * total**2
    costs = {"gram": pairs * (c + products * f + _GRAM_ENTRY * (1 + kept))}
    if not group.has_lookup:
        gradients = (n1 + n2) * k * b * c * f
        contraction = n1 * n2 * products * b * c * f
        costs["form"] = gradients * (total + _GRADIENT_ENTRY) + contraction
    return costs


def cost_of_jacobian(size: int, n1: int, n2: int, k: int, outputs: Outputs) -> float:
    """Multiply-adds of the kernel of a differentiated leaf, memory traffic included.

    Args:
        size: Number of entries of the leaf.
        n1: Examples in a chunk of rows.
        n2: Examples in a chunk of columns.
        k: Number of outputs.
        outputs: What is kept of the ``k x k`` block of two examples.

    Returns:
        The cost, of the contraction and of writing the gradients.
    """
    products = k * k if outputs == "full" else k
    return size * ((n1 + n2) * k * _GRADIENT_ENTRY + n1 * n2 * products)


def form(group: Group, factors: Sequence[Factors]) -> jax.Array:
    """The gradient with respect to a group's entries.

    Args:
        group: The group.
        factors: Those of its sites, in order.

    Returns:
        Gradients ``[n, k, b * f * c]``: in the order that products leave them in, for
        another one would be a transposition of all gradients.
    """
    total = 0.0
    for member, (left, right) in zip(group.members, factors, strict=True):
        total = total + _formed(group.shape, left, right, flipped=member.flipped)
    return jnp.reshape(total, (*jnp.shape(total)[:2], -1))


def _formed(shape, left, right, *, flipped):
    """One site's gradient ``[n, k, b, f, c]``; without `b` where that is 1."""
    if shape[1:] == (1, 1):  # as products of matrices they would be a loop
        dtype = jnp.result_type(jnp.float32, left, right)
        return jnp.sum(left[:, None] * right, axis=-2, dtype=dtype)
    if shape[0] > 1:
        axes = "ikbtc,ibtf->ikbfc" if flipped else "ibtc,ikbtf->ikbfc"
        return _einsum(axes, left, right)
    # With an axis of size one, the compiler lays products out some 3 times slower.
    axes = "iktc,itf->ikfc" if flipped else "itc,iktf->ikfc"
    return _einsum(axes, left[..., 0, :, :], right[..., 0, :, :])


def contract(outputs: Outputs, gradient1: Any, gradient2: Any) -> jax.Array:
    """The Gram matrix of gradients.

    Args:
        outputs: What is kept of the ``k x k`` block of two examples.
        gradient1: Gradients ``[n1, k, p]``.
        gradient2: Gradients ``[n2, k, p]``.

    Returns:
        The kernel, ``[n1, n2]``, ``[n1, n2, k]`` or ``[n1, n2, k, k]``.
    """
    if outputs == "diagonal":
        return _einsum("ikp,jkp->ijk", gradient1, gradient2)
    (n1, k, p), n2 = gradient1.shape, gradient2.shape[0]
    if outputs == "trace":
        flat = [gradient.reshape(-1, k * p) for gradient in (gradient1, gradient2)]
        return _product(*flat)
    flat = [gradient.reshape(-1, p) for gradient in (gradient1, gradient2)]
    return jnp.swapaxes(_product(*flat).reshape(n1, k, n2, k), 1, 2)


def gram(
    outputs: Outputs,
    group: Group,
    factors1: Sequence[Factors],
    factors2: Sequence[Factors],
) -> jax.Array:
    """The kernel of a group, from Gram matrices of its sites' factors.

    Args:
        outputs: What is kept of the ``k x k`` block of two examples.
        group: The group.
        factors1: Factors of its sites for the rows.
        factors2: Factors of its sites for the columns.

    Returns:
        The kernel, ``[n1, n2]``, ``[n1, n2, k]`` or ``[n1, n2, k, k]``.
    """
    total: Any = 0.0
    for member1, site1 in zip(group.members, factors1, strict=True):
        for member2, site2 in zip(group.members, factors2, strict=True):
            total = total + _pair(outputs, member1, site1, member2, site2)
    return total


def _pair(outputs, member1, site1, member2, site2):
    """The part of a kernel that two sites share."""
    flips = member1.flipped, member2.flipped
    if member1.is_lookup and member2.is_lookup:
        left_axes, left = "bitjs", _same_rows(site1.left, site2.left)
    elif member1.is_lookup:
        left_axes, left = _look_up(outputs, site1.left, site2.left, "kl")
    elif member2.is_lookup:
        left_axes, left = _look_up(outputs, site2.left, site1.left, "lk")
        # Rows of the second site at the first's columns: exchange the two.
        left_axes = left_axes.translate(str.maketrans("ijts", "jist"))
    else:
        left_axes, left = _gram(outputs, site1.left, site2.left, flips)
    inverse = not flips[0], not flips[1]
    right_axes, right = _gram(outputs, site1.right, site2.right, inverse)
    return _combine(outputs, left_axes, left, right_axes, right)


def _letters(outputs, has_outputs):
    """The letters of the output axes of two factors that have them or not."""
    second = "l" if outputs == "full" else "k"
    return "k" if has_outputs[0] else "", second if has_outputs[1] else ""


def _gram(outputs, first, second, has_outputs):
    """Gram matrix of two factors over their last axis, and its axes."""
    k1, k2 = _letters(outputs, has_outputs)
    together = bool(k1) and k1 == k2
    if together and outputs == "diagonal":
        return f"b{k1}itjs", _einsum(f"i{k1}btx,j{k2}bsx->b{k1}itjs", first, second)
    if together:
        # The outputs are summed: beside what is contracted, they are contracted too.
        first, second = (_join(jnp.moveaxis(a, 1, -2)) for a in (first, second))
        k1 = k2 = ""
    # As a matrix product leaves the axes.
    return f"bi{k1}tj{k2}s", _all_products(first, second)


def _join(a):
    """The last two axes as one."""
    return a.reshape(*a.shape[:-2], -1)


def _all_products(first, second):
    """All products of rows of factors ``[i, .., b, t, x]``: ``[b, i, .., j, ..]``."""
    first, second = (jnp.moveaxis(a, -3, 0) for a in (first, second))
    flat = [a.reshape(len(a), -1, a.shape[-1]) for a in (first, second)]
    if len(first) == 1:
        products = _product(flat[0][0], flat[1][0])
    else:
        products = jax.vmap(_product)(*flat)
    return products.reshape(*first.shape[:-1], *second.shape[1:-1])


def _same_rows(rows1, rows2):
    """Whether two positions look the same row up, ``[b, i, t, j, s]``."""
    rows1, rows2 = jnp.swapaxes(rows1, 0, 1), jnp.swapaxes(rows2, 0, 1)
    rows1, rows2 = rows1[:, :, :, None, None], rows2[:, None, None, :, :]
    return ((rows1 == rows2) & (rows1 >= 0)).astype(jnp.float32)


def _look_up(outputs, rows, dense, letters):
    """Entries of a factor ``[j, k, b, s, c]`` at rows ``[i, b, t]``, and their axes."""
    axis = "k" if outputs != "full" else letters[1]
    rows = jnp.where(rows < 0, dense.shape[-1], rows)  # out of reach: filled by zero
    take = lambda a, r: jnp.take(a, r, axis=-1, mode="fill", fill_value=0)
    found = jax.vmap(take, in_axes=(2, 1), out_axes=0)(dense, rows)
    return f"bj{axis}sit", found


def _combine(outputs, left_axes, left, right_axes, right):
    """Multiply two Gram matrices and sum over blocks, positions, and traced outputs."""
    kept = {"trace": "ij", "diagonal": "ijk", "full": "ijkl"}[outputs]
    every = "biktjls"
    present = [a for a in every if a in left_axes or a in right_axes]

    def aligned(axes, array):
        array = jnp.transpose(array, [axes.index(a) for a in present if a in axes])
        return jnp.expand_dims(
            array, [i for i, a in enumerate(present) if a not in axes]
        )

    product = aligned(left_axes, left) * aligned(right_axes, right)
    total = jnp.sum(product, axis=[i for i, a in enumerate(present) if a not in kept])
    order = [a for a in present if a in kept]
    return jnp.transpose(total, [order.index(a) for a in kept])


def _product(first, second):
    """Products of all rows, in the precision of the factors and at least float32.

    Of matrices: with more axes the compiler takes a path some 4 times slower.
    """
    return _einsum("mx,nx->mn", first, second)


def _einsum(axes, first, second):
    """A product in the precision of its factors, and at least float32."""
    dtype = jnp.result_type(jnp.float32, first, second)
    return jnp.einsum(
        axes, first, second, precision="highest", preferred_element_type=dtype
    )
