"""Training: one scan's numbers, whatever is recorded; batches, keys, divergence."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtheory import dynamics
from jaxtheory.dynamics import _run, _schedule

KEY = jax.random.key(7)
N, D = 10, 3
EPS = float(jnp.finfo(jnp.float32).eps)


def squared_error(outputs, targets):
    return (outputs - targets) ** 2


def tanh_model(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


def make_data(dtype=jnp.float32):
    x = jax.random.normal(jax.random.fold_in(KEY, 100), (N, D), dtype)
    return x, jnp.sin(x.sum(1))


def make_params(dtype=jnp.float32):
    w = jax.random.normal(jax.random.fold_in(KEY, 101), (D, 4), dtype)
    return {"w": w, "v": jnp.full(4, 0.5, dtype)}


OBJECTIVE = dynamics.supervised(tanh_model, squared_error)
OPTIMIZER = optax.adam(0.05)
RECORD = {"params": lambda s: s.params, "count": lambda s: s.step}


def train(**changes):
    """A run of eight steps, with what a test changes."""
    arguments = {
        "objective": OBJECTIVE,
        "state": dynamics.init(OPTIMIZER, make_params()),
        "optimizer": OPTIMIZER,
        "data": make_data(),
        "num_steps": 8,
        "key": KEY,
        "batch_size": 3,
        "record": RECORD,
        "record_every": 2,
        "progress": False,
    } | changes
    return dynamics.train(**arguments)


@pytest.fixture(scope="module")
def history():
    return train()


def documented_batches(num_steps, batch_size):
    """The rule in the docstring, written out."""
    shuffle = jax.random.fold_in(KEY, 0)
    per_epoch = N // batch_size
    for step in range(num_steps):
        epoch, position = divmod(step, per_epoch)
        order = jax.random.permutation(jax.random.fold_in(shuffle, epoch), N)
        yield order[position * batch_size : (position + 1) * batch_size]


def assert_identical(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def test_numbers_are_those_of_one_hand_written_scan(history):
    x, y = make_data()
    batches = jnp.stack(list(documented_batches(8, 3)))

    @jax.jit
    def by_hand(params, opt_state):
        def loss_fn(params, x, y):
            return jnp.mean((tanh_model(params, x) - y) ** 2)

        def step(carry, chosen):
            params, opt_state = carry
            loss, grads = jax.value_and_grad(loss_fn)(params, x[chosen], y[chosen])
            updates, opt_state = OPTIMIZER.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
            return (params, opt_state), (loss, params)

        return jax.lax.scan(step, (params, opt_state), batches)

    params = make_params()
    (last, opt_state), (losses, path) = by_hand(params, OPTIMIZER.init(params))
    # Not to the bit: compilers round fused steps of two programs in their own way.
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6)
    close(history.trace["loss"], np.asarray(losses))
    jax.tree.map(close, history.state.params, last)
    jax.tree.map(close, history.state.opt_state, opt_state)
    for name in params:
        expected = np.concatenate([params[name][None], path[name][1::2]])
        close(history.records["params"][name], expected)


def test_history_is_on_the_host_and_says_when(history):
    leaves = jax.tree.leaves((history.steps, history.records, history.trace))
    assert all(type(leaf) is np.ndarray for leaf in leaves)
    assert history.steps.tolist() == [0, 2, 4, 6, 8]
    assert history.records["count"].tolist() == [0, 2, 4, 6, 8]
    assert set(history.trace) == {"loss", "step_length"}
    assert history.diverged_at is None
    assert int(history.state.step) == 8
    assert_identical(history.state.initial_params, make_params())


def test_trace_is_of_the_iterate_before_the_update():
    trace = {"params": lambda s: s.params, "moved": lambda s: s.initial_params}
    history = train(trace=trace, record_every=1)
    before = jax.tree.map(lambda a: a[:-1], history.records["params"])
    assert_identical(history.trace["params"], before)
    assert_identical(history.trace["moved"]["v"], np.full((8, 4), 0.5, np.float32))
    squares = sum(
        (np.diff(a.astype(np.float64), axis=0) ** 2).reshape(8, -1).sum(1)
        for a in jax.tree.leaves(history.records["params"])
    )
    np.testing.assert_allclose(
        history.trace["step_length"], np.sqrt(squares), rtol=16 * EPS
    )


def test_what_is_recorded_does_not_change_the_path(history):
    other = train(record=None, record_every=4)
    assert_identical(other.state, history.state)
    assert other.records == {}


def test_continuing_from_a_history_is_exact(history):
    first = train(num_steps=4)
    second = train(state=first.state, num_steps=4)
    assert second.steps.tolist() == [4, 6, 8]
    assert_identical(second.state, history.state)
    rows = jax.tree.map(lambda *parts: np.concatenate(parts), first.trace, second.trace)
    assert_identical(rows, history.trace)


def test_default_record_every_divides_and_stays_below_a_hundred():
    assert _schedule.check_schedule(2000, None) == 100
    assert _schedule.check_schedule(250, None) == 50
    assert _schedule.check_schedule(7, None) == 7
    assert train(record_every=None).steps.tolist() == [0, 8]


# Batches and keys: an objective that keeps what it was given in the model state.


def spy(params, model_state, batch, key):
    return jnp.sum(params**2), {"batch": batch, "draw": jax.random.uniform(key)}


def spied(batch_size, num_steps):
    size = N if batch_size is None else batch_size
    seen = {"batch": jnp.zeros(size, jnp.int32), "draw": jnp.zeros(())}
    optimizer = optax.sgd(0.1)
    history = train(
        objective=spy,
        state=dynamics.init(optimizer, jnp.ones(2), model_state=seen),
        optimizer=optimizer,
        data=jnp.arange(N, dtype=jnp.int32),
        num_steps=num_steps,
        batch_size=batch_size,
        record={"seen": lambda s: s.model_state},
        record_every=1,
    )
    return jax.tree.map(lambda a: a[1:], history.records["seen"])


def test_an_epoch_visits_every_example_once():
    batches = spied(batch_size=3, num_steps=7)["batch"]
    np.testing.assert_array_equal(batches, list(documented_batches(7, 3)))
    epochs = batches[:6].reshape(2, 9)
    assert all(len(set(epoch)) == 9 for epoch in epochs.tolist())
    assert not np.array_equal(*epochs)
    whole = spied(batch_size=N, num_steps=2)["batch"]
    assert all(sorted(batch) == list(range(N)) for batch in whole.tolist())


def test_full_batches_are_in_the_order_given():
    batches = spied(batch_size=None, num_steps=2)["batch"]
    np.testing.assert_array_equal(batches, [np.arange(N)] * 2)


def test_each_step_has_its_own_key():
    draws = spied(batch_size=3, num_steps=7)["draw"]
    noise = jax.random.fold_in(KEY, 1)
    expected = [jax.random.uniform(jax.random.fold_in(noise, t)) for t in range(7)]
    np.testing.assert_array_equal(draws, expected)
    assert len(set(draws.tolist())) == 7


def test_nothing_is_traced_twice():
    traces = {"objective": 0, "record": 0, "trace": 0}

    def objective(params, model_state, batch, key):
        traces["objective"] += 1
        return OBJECTIVE(params, model_state, batch, key)

    def measure(state):
        traces["record"] += 1
        return state.step

    def follow(state):
        traces["trace"] += 1
        return state.step

    again = {"objective": objective, "record": {"a": measure}, "trace": {"b": follow}}
    train(**again)
    first = dict(traces)
    assert first == {"objective": 1, "record": 1, "trace": 1}
    params = jax.tree.map(lambda a: a + 1, make_params())
    state = dynamics.init(OPTIMIZER, params)
    x, y = make_data()
    train(**again, state=state, data=(x + 1, y), key=jax.random.key(8), num_steps=4)
    assert traces == first


def test_supervised_is_a_value():
    same = dynamics.supervised(tanh_model, squared_error)
    assert same == OBJECTIVE
    assert hash(same) == hash(OBJECTIVE)
    assert dynamics.supervised(tanh_model, jnp.subtract) != OBJECTIVE
    loss, model_state = OBJECTIVE(make_params(), "passed", make_data(), KEY)
    x, y = make_data()
    expected = np.mean((np.asarray(tanh_model(make_params(), x)) - np.asarray(y)) ** 2)
    np.testing.assert_allclose(loss, expected, rtol=8 * EPS)
    assert model_state == "passed"


def test_double_precision(x64):
    params, data = make_params(jnp.float64), make_data(jnp.float64)
    optimizer = optax.sgd(0.1)
    history = train(
        state=dynamics.init(optimizer, params),
        optimizer=optimizer,
        data=data,
        num_steps=2,
        batch_size=None,
        record_every=1,
    )
    assert history.trace["loss"].dtype == history.trace["step_length"].dtype == "f8"
    loss_fn = lambda p: jnp.mean((tanh_model(p, data[0]) - data[1]) ** 2)
    for _ in range(2):
        grads = jax.grad(loss_fn)(params)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
    np.testing.assert_allclose(history.state.params["w"], params["w"], rtol=1e-14)


def test_half_precision_steps_are_those_that_the_parameters_made():
    optimizer = optax.sgd(1e-4)
    state = dynamics.init(optimizer, jnp.ones(4, jnp.bfloat16))
    history = train(
        objective=lambda p, s, batch, key: (jnp.sum(p), s),
        state=state,
        optimizer=optimizer,
        num_steps=2,
        record=None,
    )
    # 1 - 1e-4 rounds to 1.
    assert history.trace["step_length"].tolist() == [0.0, 0.0]
    assert history.trace["step_length"].dtype == np.float32


def test_python_numbers_as_parameters():
    history = train(
        objective=lambda p, s, batch, key: (p**2, s),
        state=dynamics.init(OPTIMIZER, 3.0),
        num_steps=2,
    )
    assert history.records["params"].shape == (2,)


def test_sharded_data_gives_the_same(history, eight_devices):
    placement = jax.sharding.NamedSharding(
        eight_devices, jax.sharding.PartitionSpec("data")
    )
    data = jax.tree.map(lambda a: jnp.concatenate([a, a[:6]]), make_data())
    one = train(data=data, batch_size=8)
    eight = train(data=jax.device_put(data, placement), batch_size=8)
    for tree, other in ((one.trace, eight.trace), (one.records, eight.records)):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            tree,
            other,
        )


# Divergence and interruption.


def explode(**changes):
    """Gradient descent on ``w^4`` with a step too large: finite until it is not."""
    optimizer = optax.sgd(0.6)
    return train(
        **{
            "objective": lambda w, s, batch, key: (jnp.sum(w**4) * jnp.mean(batch), s),
            "state": dynamics.init(optimizer, jnp.array([1.5, 0.0])),
            "optimizer": optimizer,
            "data": jnp.ones(4),
            "batch_size": None,
            "record": {"w": lambda s: s.params},
        }
        | changes
    )


def test_divergence_is_data():
    path = [np.float32(1.5)]
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(8):
            path.append(path[-1] - np.float32(0.6) * 4 * path[-1] ** 3)
        losses, moves = np.array(path[:-1]) ** 4, np.diff(path) ** 2
    first_bad = int(np.argmin(np.isfinite(losses) & np.isfinite(moves)))
    assert first_bad == 3
    history = explode()
    assert history.diverged_at == first_bad
    assert len(history.trace["loss"]) == first_bad + 1
    assert np.isfinite(history.trace["loss"][:-1]).all()
    assert history.steps.tolist() == [0, 2]
    np.testing.assert_allclose(history.records["w"][:, 0], path[0:3:2], rtol=1e-5)
    assert int(history.state.step) == 2
    assert_identical(np.asarray(history.state.params), history.records["w"][-1])


def test_data_that_is_not_finite_diverges_at_once():
    history = explode(data=jnp.array([1.0, jnp.nan]))
    assert history.diverged_at == 0
    assert history.steps.tolist() == [0]
    assert history.trace["loss"].shape == (1,)
    assert int(history.state.step) == 0


def test_an_update_that_is_not_finite_ends_the_run_too():
    """The loss of the last step of a chunk may still be finite."""
    history = explode(
        objective=lambda w, s, batch, key: (jnp.sum(jnp.sqrt(w)), s),
        state=dynamics.init(optax.sgd(0.6), jnp.zeros(1)),
    )
    assert history.trace["loss"].tolist() == [0.0]
    assert history.diverged_at == 0


class InterruptedBar(_run.tqdm):
    """Ctrl-C while the bar moves to the fourth step."""

    def update(self, n=1):
        super().update(n)
        if self.n >= 4:
            raise KeyboardInterrupt


def test_an_interrupted_run_returns_what_it_has(monkeypatch, capsys, history):
    monkeypatch.setattr(_run, "tqdm", InterruptedBar)
    partial = train(progress=True)
    assert "recorded up to step 4" in capsys.readouterr().err
    assert partial.steps.tolist() == [0, 2, 4]
    assert int(partial.state.step) == 4
    assert_identical(partial.trace["loss"], history.trace["loss"][:4])


def test_progress_shows_the_loss(capsys):
    train(progress=True)
    shown = capsys.readouterr().err
    assert "8/8" in shown
    assert "loss=" in shown


# Bad input.

BAD = {
    "no typed key": ({"key": jax.random.PRNGKey(0)}, "`key` must be one typed"),
    "many keys": ({"key": jax.random.split(KEY, 2)}, "`key` must be one typed"),
    "ragged data": ({"data": (jnp.ones((4, 3)), jnp.ones(5))}, "as many examples"),
    "batch too large": ({"batch_size": 11}, "`batch_size` must be at most"),
    "batch of none": ({"batch_size": 0}, "`batch_size` must be"),
    "no steps": ({"num_steps": 0}, "`num_steps` must be a positive"),
    "steps not whole": ({"num_steps": 2.0}, "`num_steps` must be a positive"),
    "not dividing": ({"record_every": 3}, "3 does not divide 8"),
    "no period": ({"record_every": 0}, "`record_every` must be a positive"),
    "reserved": ({"trace": {"loss": lambda s: s.step}}, "must not use the name 'loss'"),
    "no store": ({"resume": True}, "pass `store`"),
    "no key": ({"key": None}, "`key` must be one typed .* but is None"),
    "record of a list": ({"record": [jnp.sum]}, "`record` must map names .* a list"),
    "trace of a function": ({"trace": jnp.sum}, "`trace` must map names to"),
    "no name": ({"record": {1: jnp.sum}}, r"`record\[1\]` must be .* under a int"),
    "no function": ({"trace": {"a": 1.0}}, r"`trace\['a'\]` must be a function"),
    "no state": ({"state": {"w": jnp.ones(3)}}, "`state` must be a `TrainState`"),
    "loss alone": (
        {"objective": lambda p, s, batch, key: jnp.sum(p["v"])},
        r"`objective` must return a pair.*PyTreeDef\(\*\)",
    ),
    "loss of integers": (
        {"objective": lambda p, s, batch, key: (jnp.array(1), s)},
        "`objective` must return a floating-point scalar .* int32",
    ),
    "data alone": ({"data": jnp.ones((4, 2))}, r"`data` must be a pair \(x, y\)"),
    "data by name": (
        {"data": {"x": jnp.ones((4, 2)), "y": jnp.ones(4)}},
        r"`data` must be a pair \(x, y\)",
    ),
    "loss of two": (
        {"objective": dynamics.supervised(tanh_model, lambda o, y: (o, y))},
        "`loss_fn` must return one loss per example.* a tuple",
    ),
    "other optimizer": ({"optimizer": optax.sgd(0.1)}, "`state.opt_state` must be"),
    "record of text": (
        {"record": {"a": lambda s: {"b": "text"}}},
        r"`record\['a'\]\['b'\]` must be an array, but .* str",
    ),
    "record of nothing": ({"record": {"a": lambda s: None}}, "at least one array"),
    "record of a key": (
        {"record": {"a": lambda s: jax.random.key(0)}},
        r"`record\['a'\]` .* random key",
    ),
    "trace of text": ({"trace": {"a": lambda s: "text"}}, r"`trace\['a'\]`"),
    "loss not scalar": (
        {"objective": lambda p, s, batch, key: (batch[1], s)},
        r"`objective` must return a scalar .* \(3,\)",
    ),
    "other model state": (
        {"objective": lambda p, s, batch, key: (jnp.sum(p["v"]), p["v"])},
        "`objective` must return a model state",
    ),
    "mean loss": (
        {"objective": dynamics.supervised(tanh_model, lambda o, y: jnp.mean(o))},
        "`loss_fn` must return one loss per example",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, user_land):
    changes, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        train(**changes)


@pytest.mark.parametrize(
    ("params", "message"),
    [({}, "must hold at least one array"), (jnp.arange(3), "must be floating-point")],
)
def test_bad_params(params, message, user_land):
    with pytest.raises(ValueError, match=message):
        dynamics.init(OPTIMIZER, params)
