"""Strided convolutions by phases against the convolution itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtheory.kernels._convolution import convolve_by_phases, is_strided

LAST, FIRST = ("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")
MIXED = "NHWC", "OIHW", "NCHW"
CASES = {
    "same": ((2, 2), "SAME", (9, 8), (3, 3), 1, LAST),
    "unequal": ((2, 3), ((0, 4), (2, 1)), (7, 10), (2, 5), 1, FIRST),
    "cropped": ((3, 1), ((-1, 0), (1, -2)), (11, 9), (4, 2), 1, MIXED),
    "projection": ((2, 2), "VALID", (6, 7), (1, 1), 1, LAST),
    "grouped": ((2,), "SAME", (9,), (3,), 2, ("NHC", "HIO", "NHC")),
    "volume": ((2, 1, 2), "SAME", (4, 3, 5), (3, 2, 2), 1, ("NDHWC", "DHWIO", "NDHWC")),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_both_gradients(x64, name):
    strides, padding, image, window, groups, specs = CASES[name]
    spatial = [c for c in specs[0] if c not in "NC"]
    sizes = dict(zip(spatial, image, strict=True), N=2, C=4)
    taps = dict(zip(spatial, window, strict=True), I=4 // groups, O=6)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal([sizes[axis] for axis in specs[0]]))
    w = jnp.asarray(rng.standard_normal([taps[axis] for axis in specs[1]]))

    def convolve(x, w):
        return jax.lax.conv_general_dilated(
            x, w, strides, padding, dimension_numbers=specs, feature_group_count=groups
        )

    (eqn,) = jax.make_jaxpr(convolve)(x, w).eqns
    assert is_strided(eqn)
    expected, pullback = jax.vjp(convolve, x, w)
    found, by_phases = jax.vjp(lambda x, w: convolve_by_phases(eqn, [x, w]), x, w)
    cotangent = jnp.asarray(rng.standard_normal(expected.shape))
    for a, b in zip(
        [found, *by_phases(cotangent)], [expected, *pullback(cotangent)], strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


def test_without_strides_or_dilated_it_is_left_alone():
    x, w = jnp.ones((1, 6, 2)), jnp.ones((3, 2, 2))
    for options in (
        {"window_strides": (1,)},
        {"window_strides": (2,), "rhs_dilation": (2,)},
        {"window_strides": (2,), "lhs_dilation": (2,)},
    ):
        names = ("NHC", "HIO", "NHC")
        convolve = lambda x, w, options=options, names=names: (
            jax.lax.conv_general_dilated(
                x, w, padding=[(0, 0)], dimension_numbers=names, **options
            )
        )
        (eqn,) = jax.make_jaxpr(convolve)(x, w).eqns
        assert not is_strided(eqn)
