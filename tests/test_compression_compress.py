"""One call from a trained network to a small file: sizes, errors, the same function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtheory import compression, models

LAYERS = ("layer_1", "layer_2", "output")
MODEL = models.MLP((40, 30), num_outputs=3)
X = jax.random.normal(jax.random.key(0), (50, 8))
Y = jnp.arange(50) % 3


def build(widths):
    return models.MLP(tuple(widths.values()), num_outputs=3).apply


@pytest.fixture(scope="module")
def params():
    """A network of which half of the nodes hardly matter."""
    inside = dict(MODEL.init(jax.random.key(1), X[:1])["params"])
    for layer, half in (("layer_1", 20), ("layer_2", 15)):
        kernel = inside[layer]["kernel"]
        inside[layer] = inside[layer] | {"kernel": kernel.at[:, half:].mul(1e-3)}
    return {"params": inside}


def test_the_file_is_the_network_and_the_errors_are_kept(params, tmp_path):
    path = tmp_path / "small"
    found = compression.compress(params, path, layers=LAYERS, target_error=0.1)
    assert found.widths == {"layer_1": 20, "layer_2": 15}
    assert found.size_after == path.stat().st_size
    num_params = 8 * 40 + 40 + 40 * 30 + 30 + 30 * 3 + 3
    assert 4 * num_params < found.size_before < 4 * num_params + 1000
    assert found.size_before > 10 * found.size_after
    again = compression.load_compressed(path)
    assert jax.tree.all(jax.tree.map(np.array_equal, found.params, again))
    assert found.bound is None
    # The whole error of each kernel, of nodes and of levels, is within the target.
    for layer, last in (("layer_1", 20), ("layer_2", 15)):
        before = np.asarray(params["params"][layer]["kernel"])
        inputs = 20 if layer == "layer_2" else before.shape[0]
        after = np.zeros_like(before[:inputs])
        after[:, :last] = found.params["params"][layer]["kernel"]
        error = np.linalg.norm(after - before[:inputs]) / np.linalg.norm(before)
        assert error <= 0.1
        name = f"['params']['{layer}']['kernel']"
        assert 0 < found.level_error[name] <= 0.1 / np.sqrt(2)
        assert 0 < found.node_error[layer] <= 0.1 / np.sqrt(2)
    outputs = build(found.widths)(found.params, X)
    expected = MODEL.apply(params, X)
    relative = jnp.linalg.norm(outputs - expected) / jnp.linalg.norm(expected)
    assert float(relative) < 0.3


def test_a_size_is_reached_with_the_smallest_error(params, tmp_path):
    sizes = [400, 700]
    found = [
        compression.compress(
            params, tmp_path / f"{size}", layers=LAYERS, target_size=size
        )
        for size in sizes
    ]
    for one, size in zip(found, sizes, strict=True):
        assert 0.8 * size < one.size_after <= size
    assert found[0].target_error > found[1].target_error


def test_fine_tuning_sees_the_smaller_network_and_data_give_a_bound(params, tmp_path):
    asked = []

    def fine_tune(smaller, widths):
        asked.append(widths)
        return jax.tree.map(lambda a: 2 * a, smaller)

    found = compression.compress(
        params,
        tmp_path / "a",
        layers=LAYERS,
        target_error=0.1,
        fine_tune=fine_tune,
        build=build,
        data=(X, Y),
    )
    assert asked == [{"layer_1": 20, "layer_2": 15}]
    kernel = params["params"]["output"]["kernel"][:15]
    tuned = found.params["params"]["output"]["kernel"]
    error = np.linalg.norm(tuned - 2 * kernel) / np.linalg.norm(2 * kernel)
    assert error == pytest.approx(found.level_error["['params']['output']['kernel']"])
    wrong = np.argmax(build(found.widths)(found.params, X), 1) != np.asarray(Y)
    assert found.bound is not None
    assert found.bound.empirical_risk == wrong.mean()
    # All of a network in a file cannot beat guessing with 50 examples, and says so.
    assert found.bound.certificate
    assert found.bound.vacuous or found.bound.value > 0.99


def test_bad_input(params, tmp_path, user_land):
    make = lambda **changes: compression.compress(
        params, tmp_path / "a", **({"layers": LAYERS} | changes)
    )
    for changes, message in (
        ({}, "but neither was given"),
        ({"target_error": 0.1, "target_size": 9}, "but both were given"),
        ({"target_error": 1.0}, "`target_error` must be strictly between 0 and 1"),
        ({"target_size": 0}, "`target_size` must be an integer of at least 1"),
        ({"target_size": 20}, "`target_size` must be reached with an error of 0.99"),
        ({"target_error": 0.1, "build": build}, "`build` and `data` go together"),
        ({"target_error": 0.1, "fine_tune": 3}, "`fine_tune` must be a function"),
        ({"target_error": 0.1, "layers": "output"}, "`layers` must name at least two"),
    ):
        with pytest.raises(ValueError, match=message):
            make(**changes)
    (tmp_path / "a").write_text("thesis")
    with pytest.raises(ValueError, match="`path` must be free"):
        make(target_error=0.1)
    assert (tmp_path / "a").read_text() == "thesis"
