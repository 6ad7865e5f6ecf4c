"""Networks with fewer nodes: the same function where nothing was lost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtheory import compression, models

LAYERS = ("layer_1", "layer_2", "output")
IMAGES = jax.random.normal(jax.random.key(0), (3, 6, 6, 2))
CNN = models.CNN((5, 4), num_outputs=3)


@pytest.fixture(scope="module")
def params():
    return CNN.init(jax.random.key(1), IMAGES[:1])


def columns(kernel):
    return np.linalg.norm(np.asarray(kernel).reshape(-1, kernel.shape[-1]), axis=0)


def test_channels_without_weights_go_without_a_trace(params):
    dead = {"layer_1": [0, 3], "layer_2": [2]}
    inside = dict(params["params"])
    for layer, nodes in dead.items():
        at = (..., np.array(nodes))
        inside[layer] = jax.tree.map(lambda a, at=at: a.at[at].set(0.0), inside[layer])
    before = {"params": inside}
    found = compression.prune_nodes(before, layers=LAYERS, relative_error=1e-6)
    assert found.widths == {"layer_1": 3, "layer_2": 3}
    assert found.kept["layer_1"].tolist() == [1, 2, 4]
    assert found.relative_error == {"layer_1": 0.0, "layer_2": 0.0}
    smaller = models.CNN((3, 3), num_outputs=3)
    np.testing.assert_allclose(
        smaller.apply(found.params, IMAGES), CNN.apply(before, IMAGES), atol=1e-6
    )
    shapes = jax.tree.map(jnp.shape, found.params["params"])
    assert shapes["layer_2"]["kernel"] == (3, 3, 3, 3)


def test_smallest_nodes_go_and_the_error_is_theirs(params):
    found = compression.prune_nodes(params, layers=LAYERS, fraction=0.5)
    for layer, width in (("layer_1", 3), ("layer_2", 2)):
        norms = columns(params["params"][layer]["kernel"])
        stay = np.sort(np.argsort(norms)[len(norms) - width :])
        assert found.kept[layer].tolist() == stay.tolist()
        gone = np.delete(norms, stay)
        error = np.linalg.norm(gone) / np.linalg.norm(norms)
        assert found.relative_error[layer] == pytest.approx(error, rel=1e-5)
    # The rest below "params" alone, and other modules as they were.
    extra = params["params"] | {"other": {"scale": jnp.ones(2)}}
    again = compression.prune_nodes(extra, layers=LAYERS, fraction=0.5)
    np.testing.assert_array_equal(
        again.params["layer_1"]["kernel"], found.params["params"]["layer_1"]["kernel"]
    )
    assert set(again.params) == set(extra)


def test_as_many_as_the_error_allows(params):
    norms = columns(params["params"]["layer_1"]["kernel"])
    errors = np.sqrt(np.cumsum(np.sort(norms) ** 2) / np.sum(norms**2))
    target = float((errors[1] + errors[2]) / 2)
    found = compression.prune_nodes(params, layers=LAYERS, relative_error=target)
    assert found.widths["layer_1"] == len(norms) - 2
    assert found.relative_error["layer_1"] == pytest.approx(errors[1], rel=1e-5)
    least = compression.prune_nodes(params, layers=LAYERS, relative_error=0.9999)
    assert min(least.widths.values()) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "but neither was given"),
        ({"fraction": 0.1, "relative_error": 0.1}, "but both were given"),
        ({"fraction": 1.0}, r"`fraction` must be in \[0, 1\)"),
        ({"fraction": 0.1, "layers": "layer_1"}, "`layers` must name at least two"),
        ({"fraction": 0.1, "layers": ("layer_1", "head")}, "'head' is missing; there"),
        ({"fraction": 0.1, "layers": LAYERS[::2]}, r"must feed each other.* \(4, 3\)"),
    ],
)
def test_bad_input(params, changes, message, user_land):
    with pytest.raises(ValueError, match=message):
        compression.prune_nodes(params, **({"layers": LAYERS} | changes))


def test_other_arrays_and_bad_numbers_are_refused(params, user_land):
    inside = params["params"]
    normed = inside | {"layer_1": inside["layer_1"] | {"scale": jnp.ones(5)}}
    with pytest.raises(ValueError, match=r"'layer_1' has .*'scale'.* Fold BatchNorm"):
        compression.prune_nodes(normed, layers=LAYERS, fraction=0.5)
    bad = jax.tree.map(lambda a: a * jnp.nan, params)
    with pytest.raises(ValueError, match="`params` must be finite, but 'layer_1'"):
        compression.prune_nodes(bad, layers=LAYERS, fraction=0.5)
