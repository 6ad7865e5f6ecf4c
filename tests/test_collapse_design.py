"""Fixed frames, collapse penalties, weights against minority collapse, fine-tuning."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtheory import models
from jaxtheory.collapse import (
    adjust_logits,
    class_weights,
    classifier_frame,
    collapse_penalty,
    count_parameters,
    escape_weights,
    sampling_probabilities,
    statistics,
    train_only,
    trainable_mask,
)


def cosines(rows):
    rows = np.asarray(rows, np.float64)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


def test_simplex_frame_has_equal_angles():
    for dimension in (3, 9):
        weight = classifier_frame("simplex", 4, dimension, key=jax.random.key(0))
        expected = np.eye(4) * 4 / 3 - 1 / 3
        np.testing.assert_allclose(weight @ weight.T, expected, atol=1e-6)


def test_seli_frame_matches_published_cosines():
    # Step imbalance, half of 4 classes with 10 times the examples.
    counts = (10, 10, 1, 1)
    weight = classifier_frame("seli", 4, 6, key=jax.random.key(0), class_counts=counts)
    found = cosines(weight)
    np.testing.assert_allclose(
        [found[2, 3], found[0, 1]], [0.07945, -0.45899], atol=2e-5
    )
    lengths = np.sum(np.asarray(weight) ** 2, axis=1)
    np.testing.assert_allclose(lengths[0] / lengths[2], 1.99525, rtol=1e-5)
    np.testing.assert_allclose(lengths.mean(), 1, rtol=1e-5)


def test_orthoplex_has_the_best_margin():
    weight = classifier_frame("orthoplex", 7, 4, key=jax.random.key(0))
    found = np.sort(cosines(weight), axis=1)
    np.testing.assert_allclose(found[:3, 0], -1, atol=1e-6)
    np.testing.assert_allclose(found[:, 1:-1], 0, atol=1e-6)


def test_penalty_is_the_measured_collapse():
    rng = np.random.default_rng(0)
    labels = jnp.arange(24) % 3
    features = rng.normal(size=(3, 5))[labels] + 0.4 * rng.normal(size=(24, 5))
    features = jnp.asarray(features, jnp.float32)
    nc = statistics(features, labels)
    penalty = lambda **options: collapse_penalty(
        features, labels, num_classes=4, **options
    )
    ratio = nc.within_class_trace / nc.between_class_trace
    np.testing.assert_allclose(penalty(), ratio, rtol=1e-5)
    np.testing.assert_allclose(penalty(measure="nc1"), nc.nc1, rtol=1e-5)
    means = np.stack([np.asarray(features)[labels == c].mean(0) for c in range(3)])
    angles = cosines(means - means.mean(0))
    pairs = angles[~np.eye(3, dtype=bool)]
    expected = np.mean(-0.5 * np.log(2 - 2 * pairs))
    found = penalty(variability=0.0, uniformity=2.0)
    np.testing.assert_allclose(found, 2 * expected, rtol=1e-5)


def test_uniformity_is_least_for_the_simplex():
    labels = jnp.arange(20) % 10
    penalty = lambda h: collapse_penalty(
        h, labels, num_classes=10, variability=0.0, uniformity=1.0
    )
    frame = jnp.eye(10)[labels]
    np.testing.assert_allclose(penalty(frame), -0.39925, atol=1e-5)
    np.testing.assert_allclose(jax.grad(penalty)(frame), np.zeros((20, 10)), atol=1e-6)
    bent = frame.at[:, 0].add(0.5 * jnp.sin(labels + 0.0))
    assert penalty(bent) > penalty(frame)


def test_slope_of_the_uniformity_of_close_directions(x64):
    # Two of the directions differ by 1e-2; the oracle is NumPy over pairs, differenced.
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(5, 3))
    rows[1] = rows[0] + 1e-2 * rng.normal(size=3)
    rows -= rows.mean(0)

    def oracle(h):
        u = h - h.mean(0)
        u = u / np.linalg.norm(u, axis=1, keepdims=True)
        i, j = np.triu_indices(5, 1)
        return -np.mean(np.log(np.linalg.norm(u[i] - u[j], axis=1)))

    penalty = lambda h: collapse_penalty(
        h, jnp.arange(5), num_classes=6, variability=0.0, uniformity=1.0
    )
    value, slope = jax.value_and_grad(penalty)(jnp.asarray(rows))
    np.testing.assert_allclose(value, oracle(rows), rtol=1e-10)
    for k, c in np.ndindex(5, 3):
        step = 1e-6 * np.outer(np.eye(5)[k], np.eye(3)[c])
        expected = (oracle(rows + step) - oracle(rows - step)) / 2e-6
        np.testing.assert_allclose(slope[k, c], expected, rtol=1e-6, atol=1e-6)


def test_penalty_of_many_classes_holds_no_array_of_all_pairs_and_features():
    k, d = 60, 256
    penalty = lambda h: collapse_penalty(
        h, jnp.arange(k), num_classes=k, variability=0.0, uniformity=1.0
    )
    rows = jax.ShapeDtypeStruct((k, d), jnp.float32)
    compiled = jax.jit(jax.grad(penalty)).lower(rows).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < k * k * d  # a quarter of [k, k, d] in float32


@pytest.mark.parametrize("measure", ["trace_ratio", "nc1"])
def test_descending_the_penalty_collapses(measure):
    labels = jnp.arange(24) % 3
    start = jnp.eye(3, 4)[labels] + 0.3 * jax.random.normal(jax.random.key(0), (24, 4))

    def penalty(features):
        return collapse_penalty(
            features, labels, num_classes=3, uniformity=0.5, measure=measure
        )

    @jax.jit
    def descend(features):
        step = lambda h, _: (h - 0.5 * jax.grad(penalty)(h), 0)
        return jax.lax.scan(step, features, length=600)[0]

    before, after = statistics(start, labels), statistics(descend(start), labels)
    assert after.nc1 < 1e-3 * before.nc1
    assert after.nc2 < 0.2 * before.nc2


def test_penalty_of_a_batch_without_classes_apart_is_harmless():
    labels = jnp.array([0, 0, 1, 1])
    for features in (jnp.ones((4, 2)), jnp.zeros((4, 2))):
        for measure in ("trace_ratio", "nc1"):
            value, slope = jax.value_and_grad(
                lambda h, measure=measure: collapse_penalty(
                    h, labels, num_classes=3, uniformity=1.0, measure=measure
                )
            )(features)
            assert value == 0
            np.testing.assert_array_equal(slope, np.zeros((4, 2)))


def test_adjusted_logits_are_consistent_for_the_balanced_error():
    # With outputs log p(x | y), adjusted logits are log p(x, y): their softmax is the
    # true posterior, at which cross-entropy is least.
    likelihood = np.random.default_rng(0).dirichlet(np.ones(5), size=3).T
    counts = np.array([60, 30, 10])
    joint = likelihood * counts / 100
    adjusted = adjust_logits(jnp.asarray(np.log(likelihood)), counts)
    posterior = joint / joint.sum(1, keepdims=True)
    np.testing.assert_allclose(jax.nn.softmax(adjusted), posterior, rtol=1e-5)
    same = adjust_logits(adjusted, counts, temperature=0.0)
    np.testing.assert_array_equal(same, adjusted)


def test_weights_and_sampling_agree():
    labels = jnp.repeat(jnp.arange(3), jnp.array([20, 5, 1]), total_repeat_length=26)
    for rule, power in [("inverse", -1), ("square_root", -0.5)]:
        weights = class_weights([20, 5, 1], rule=rule)
        shape = np.array([20.0, 5, 1]) ** power
        np.testing.assert_allclose(weights / weights[0], shape / shape[0], rtol=1e-5)
        np.testing.assert_allclose(weights[labels].mean(), 1, rtol=1e-5)
        drawn = sampling_probabilities(labels, weights)
        np.testing.assert_allclose(drawn * 26, weights[labels], rtol=1e-5)


def minority_cosine(weight, decay):
    """Optimum of weighted cross-entropy with a nuclear norm: 3 large, 3 small classes.

    Proximal gradient descent on the 6 x 6 outputs, scaled by sqrt(n).
    """
    counts = np.array([30, 30, 30, 5, 5, 5], float)
    weights = np.where(counts < 10, weight, 1.0)
    total, z = counts.sum(), np.zeros((6, 6))
    root, step, previous = np.sqrt(counts), 4.0, np.zeros((6, 6))
    for count in range(6000):
        y = z + count / (count + 3) * (z - previous)
        logits = y / root[None, :]
        p = np.exp(logits - logits.max(0))
        p /= p.sum(0)
        slope = weights * root / total * (p - np.eye(6))
        u, s, v = np.linalg.svd(y - step * slope)
        previous, z = z, (u * np.maximum(s - step * decay, 0)) @ v
    u, s, _ = np.linalg.svd(z)
    return cosines(u * np.sqrt(s))[3, 4]


def test_weights_escape_minority_collapse_at_the_threshold():
    decay = 0.03
    threshold = escape_weights(
        [30, 30, 30, 5, 5, 5], weight_decay=decay, feature_decay=decay
    )
    np.testing.assert_allclose(threshold[3], 105 * decay / np.sqrt(5), rtol=1e-6)
    weight = float(threshold[3])
    assert minority_cosine(0.98 * weight, decay) > 0.99999
    assert minority_cosine(1.02 * weight, decay) < 0.99


def test_mask_and_counts():
    params = {"a": {"kernel": jnp.ones((2, 3))}, "ab": {"kernel": jnp.ones(4)}}
    mask = trainable_mask(params, "a")
    assert mask == {"a": {"kernel": True}, "ab": {"kernel": False}}
    assert count_parameters(params, mask) == (6, 10)
    assert count_parameters(params) == (10, 10)
    assert trainable_mask(params, ["ab/kernel"])["ab"]["kernel"]
    assert trainable_mask([jnp.ones(1), jnp.ones(2)], "1") == [False, True]


def test_only_marked_parameters_move_also_under_weight_decay():
    params = {"body": jnp.ones(3), "head": jnp.ones(2)}
    optimizer = train_only(optax.adamw(0.1), trainable_mask(params, "head"))
    state = optimizer.init(params)
    updates, _ = optimizer.update(params, state, params)
    moved = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(moved["body"], np.ones(3))
    assert jnp.all(moved["head"] < 1)
    sizes = [leaf.size for leaf in jax.tree.leaves(state)]
    assert sum(sizes) == 1 + 2 * 2  # a count, and two moments of the head


def test_fixed_classifier_has_no_parameters_and_is_a_value():
    head = models.FixedClassifier(4, scale=3.0)
    h = jnp.asarray(np.random.default_rng(0).normal(size=(5, 8)), jnp.float32)
    assert jax.tree.leaves(head.init(jax.random.key(0), h)) == []
    expected = h @ head.weight(8).T
    np.testing.assert_allclose(head.apply({}, h), expected, rtol=1e-5)
    assert hash(head) == hash(models.FixedClassifier(4, scale=3.0))
    unit = models.FixedClassifier(4, normalize=True)
    np.testing.assert_allclose(unit.apply({}, 7 * h), unit.apply({}, h), rtol=1e-5)
    other = models.FixedClassifier(4, scale=3.0, seed=1)
    assert not np.allclose(other.apply({}, h), expected)


def test_projection_head():
    head = models.ProjectionHead((6, 5), 3)
    params = head.init(jax.random.key(0), jnp.ones((2, 4)))["params"]
    assert list(params) == ["projection_1", "projection_2", "output"]
    assert count_parameters(params).total == 4 * 6 + 6 + 6 * 5 + 5 + 5 * 3 + 3


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_skip_connection_starts_as_the_network_and_trains_its_part(kind):
    if kind == "mlp":
        body, x = models.MLP((8, 6), num_outputs=10, batch_norm=True), jnp.ones((3, 4))
    else:
        body, x = models.CNN((5, 6), num_outputs=10), jnp.ones((3, 4, 4, 2))
    model = models.SkipConnection(body, layer="layer_1", num_outputs=3)
    pretrained = body.init(jax.random.key(0), x)
    variables = model.init(jax.random.key(1), x)
    params = {**variables["params"], "model": pretrained["params"]}
    states = {name: v for name, v in variables.items() if name != "params"}
    head = params["classifier"]
    last = list(models.features(body, pretrained, x).values())[-1]
    expected = last @ head["kernel"] + head["bias"][None]
    forward = lambda p: model.apply({"params": p, **states}, x)
    np.testing.assert_allclose(forward(params), expected, rtol=1e-5)

    mask = trainable_mask(params, model.trainable)
    optimizer = train_only(optax.sgd(0.1), mask)
    for _ in range(2):  # the skip connection passes gradients once it is not zero
        slope = jax.grad(lambda p: jnp.sum(forward(p)[:, 0] ** 2))(params)
        updates, _ = optimizer.update(slope, optimizer.init(params), params)
        params = optax.apply_updates(params, updates)
    before = pretrained["params"]
    for name, layer in params["model"].items():
        same = jax.tree.map(jnp.array_equal, layer, before[name])
        kept = not name.startswith("layer_1")
        assert all(jax.tree.leaves(same)) == kept, name
    assert jnp.any(params["skip"]["kernel"] != 0)
    trainable, total = count_parameters(params, mask)
    assert 0 < trainable < total


H, Y = jnp.ones((6, 2)), jnp.arange(6) % 2
KEY = jax.random.key


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: classifier_frame("etf", 3, 5, key=KEY(0)), r"`frame` must be"),
        (
            lambda: classifier_frame("simplex", 5, 3, key=KEY(0)),
            r"`dimension` must be at least 4 for a simplex frame of 5 classes",
        ),
        (lambda: classifier_frame("seli", 3, 5, key=KEY(0)), r"`class_counts` must be"),
        (
            lambda: collapse_penalty(H, Y, num_classes=2, variability=-1.0),
            r"`variability` must be 0 or more, but was -1.0",
        ),
        (lambda: collapse_penalty(H, Y, num_classes=2, measure="x"), r"`measure` must"),
        (lambda: adjust_logits(H, [1, 2, 3]), r"`logits` must have shape \[n, 3\]"),
        (lambda: class_weights([3, 0]), r"`class_counts` must be positive"),
        (lambda: class_weights([3, 1], rule="x"), r"`rule` must be"),
        (lambda: sampling_probabilities(H, Y), r"`labels` must be a vector"),
        (lambda: trainable_mask({"a": H}, "b"), r"`names` must be.*'b' matches"),
        (
            lambda: count_parameters({"a": H}, {"b": True}),
            r"`mask` must have the structure of `params`",
        ),
        (
            lambda: models.SkipConnection(
                models.MLP((3,), num_outputs=2), layer="layer_2", num_outputs=2
            ).init(KEY(0), H),
            r"`layer` must be one of \['layer_1'\], but was 'layer_2'",
        ),
    ],
)
def test_bad_input_names_the_fix(call, message, user_land):
    with pytest.raises(ValueError, match=message):
        call()


def test_penalty_of_a_diverged_batch_is_no_perfect_one():
    nothing = jnp.full((6, 2), jnp.nan)
    assert jnp.isnan(collapse_penalty(nothing, jnp.arange(6) % 3, num_classes=3))


@pytest.mark.parametrize(
    ("labels", "weights", "message"),
    [
        (jnp.array([0, -1]), jnp.ones(3), r"`labels` must lie in \[0, 3\).*-1 to 0"),
        (jnp.array([0, 2]), jnp.ones(2), r"`labels` must lie in \[0, 2\).*0 to 2"),
        (jnp.array([0, 1]), jnp.array([-1.0, 2.0]), r"`weights` must be.*-1.0"),
        (jnp.array([0, 1]), jnp.zeros(2), r"`weights` must be.*not all zero"),
        (jnp.array([0, 1]), jnp.array([jnp.nan, 1]), r"`weights` must be finite"),
        (jnp.array([0, 1]), [1.0, 1.0], r"`weights` must be one array.*list"),
        ([0, 1], jnp.ones(2), r"`labels` must be a vector.*list"),
    ],
)
def test_bad_sampling_names_the_fix(labels: Any, weights: Any, message, user_land):
    with pytest.raises(ValueError, match=message):
        sampling_probabilities(labels, weights)


def test_traced_labels_without_a_weight_are_no_probabilities():
    draw = jax.jit(lambda labels: sampling_probabilities(labels, jnp.ones(2)))
    assert jnp.isnan(draw(jnp.array([0, -1, 1]))).all()


def test_integer_logits_are_not_rounded(user_land):
    logits: Any = jnp.ones((1, 2), int)
    with pytest.raises(ValueError, match=r"`logits` must be floating.*int32"):
        adjust_logits(logits, [3, 1])
