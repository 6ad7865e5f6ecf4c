"""Levels, the coder, files that restore every bit, and files that do not."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtheory import compression
from jaxtheory.compression._range_coder import Decoder, Encoder


def init_fn(key):
    return {"w": jax.random.normal(key, (6, 5)), "b": jnp.zeros(5)}


SUBSPACE = compression.random_subspace(init_fn, dim=12, seed=300)
U = np.sin(np.arange(12.0)).astype(np.float32)


def equal(tree, other):
    return jax.tree.all(
        jax.tree.map(
            lambda a, b: a.dtype == b.dtype and np.array_equal(a, b), tree, other
        )
    )


def test_the_coder_returns_what_it_was_given():
    rng = np.random.default_rng(0)
    for _ in range(200):
        num, num_levels = int(rng.integers(0, 120)), int(rng.integers(1, 9))
        law = rng.dirichlet(np.full(num_levels, 0.1))
        symbols = rng.choice(num_levels, num, p=law)
        coder = Encoder()
        coder.number(5, 7)
        coder.sequence(symbols, num_levels)
        coder.sequence(symbols[::-1], num_levels)
        reader = Decoder(coder.finish())
        assert reader.number(7) == 5
        assert np.array_equal(reader.sequence(num, num_levels), symbols)
        assert np.array_equal(reader.sequence(num, num_levels), symbols[::-1])


@pytest.mark.parametrize("law", [[0.999, 0.001], [0.5, 0.25, 0.125, 0.125], [1.0]])
def test_a_sequence_takes_its_entropy_and_its_counts(law):
    size = 4096
    counts = np.round(np.array(law) * size).astype(int)
    symbols = np.repeat(np.arange(len(law)), counts)
    np.random.default_rng(0).shuffle(symbols)
    coder = Encoder()
    coder.sequence(symbols, len(law))
    nats = -np.sum(counts * np.log(counts / counts.sum()))
    nats += (len(law) - 1) * np.log(size + 1)
    bits = nats / np.log(2)
    written = 8 * len(coder.finish())
    assert bits - 8 <= written <= bits + 16


def test_a_carry_runs_through_bytes_that_are_out():
    # An interval just below 1/2 that ends above it: its lower end is 0.0111...
    for width in (2**20, 2**31):
        symbols = np.array([1, *[0] * 40])
        coder, rest = Encoder(), []
        coder.number(width // 2 - 1, width)
        for _ in range(12):
            coder.number(width - 1, width)
            rest.append(width - 1)
        coder.sequence(symbols, 2)
        reader = Decoder(coder.finish())
        assert reader.number(width) == width // 2 - 1
        assert [reader.number(width) for _ in rest] == rest
        assert np.array_equal(reader.sequence(41, 2), symbols)


def test_levels_are_means_of_what_is_nearest():
    rng = np.random.default_rng(0)
    values = rng.standard_t(3, 2000)
    found = compression.quantise(jnp.asarray(values), num_levels=8)
    rounded = found.levels[found.symbols]
    nearest = np.argmin(np.abs(values[:, None] - found.levels), axis=1)
    assert np.mean(nearest == found.symbols) > 0.999
    for level in range(8):
        mean = values[found.symbols == level].mean()
        assert found.levels[level] == pytest.approx(mean, rel=2e-3, abs=2e-3)
    # Better than quantiles and than equal distances.
    error = np.mean((values - rounded) ** 2)
    for levels in (
        np.quantile(values, (np.arange(8) + 0.5) / 8),
        np.linspace(values.min(), values.max(), 8),
    ):
        other = np.min((values[:, None] - levels) ** 2, axis=1).mean()
        assert error < other


def test_few_numbers_are_exact_and_an_error_is_kept():
    few = {"w": jnp.array([[0.5, -2.0], [0.5, 0.0]])}
    exact = compression.quantise(few, num_levels=9)
    assert exact["w"].levels.tolist() == [-2.0, 0.0, 0.5]
    values = jnp.asarray(np.random.default_rng(1).normal(size=1000))
    sizes = []
    for error in (0.5, 0.11, 0.02):
        found = compression.quantise(values, relative_error=error)
        difference = np.linalg.norm(found.array() - values) / np.linalg.norm(values)
        assert difference <= error
        sizes.append(len(found.levels))
    # Of a normal law 2, 4, 8, 16, 32, 64, 128 levels leave .60, .34, .19, .098, .05,
    # .026, .013 (Max 1960, extrapolated); where two starts leave cells empty, fewer.
    assert sizes[:2] == [4, 16]
    assert 64 < sizes[2] <= 128
    given = compression.quantise(values, levels=np.array([2.0, -1.0, 2.0]))
    assert given.levels.tolist() == [-1.0, 2.0]


def test_a_subspace_is_restored_to_the_last_bit(tmp_path):
    quantised = compression.quantise(U, num_levels=4)
    size = compression.save_compressed(tmp_path / "a", quantised, subspace=SUBSPACE)
    assert size == (tmp_path / "a").stat().st_size
    # 7 of the head, 2 + 1 + 1 of numbers, 8 of levels, some 12 * 2 bits and counts.
    assert size < 7 + 4 + 8 + 6
    found = compression.load_compressed(tmp_path / "a", init_fn=init_fn)
    assert equal(found, SUBSPACE.params(quantised.array()))
    start = jax.tree.map(lambda a: a + 1, SUBSPACE.start())
    compression.save_compressed(
        tmp_path / "b", quantised, subspace=SUBSPACE, start=start
    )
    found = compression.load_compressed(tmp_path / "b", start=start)
    assert equal(found, SUBSPACE.params(quantised.array(), start))


def test_a_network_is_restored_to_the_last_bit(tmp_path):
    rng = np.random.default_rng(0)
    params = {
        "params": {
            "one": {"kernel": jnp.asarray(rng.normal(size=(3, 3, 2, 5)))},
            "two": {"bias": jnp.zeros(5, jnp.bfloat16), "scale": jnp.ones(())},
        },
        "none": {"at all": jnp.zeros((0, 2))},
    }
    quantised = compression.quantise(params, num_levels=7)
    compression.save_compressed(tmp_path / "a", quantised)
    found = compression.load_compressed(tmp_path / "a")
    assert equal(found, compression.restore(quantised))
    assert jax.tree.structure(found) == jax.tree.structure(params)


def test_no_file_is_overwritten_unless_asked(tmp_path, user_land):
    quantised = compression.quantise(U, num_levels=4)
    path = tmp_path / "a"
    path.write_text("thesis")
    with pytest.raises(ValueError, match=r"`path` must be free, but .*overwrite=True"):
        compression.save_compressed(path, quantised, subspace=SUBSPACE)
    assert path.read_text() == "thesis"
    compression.save_compressed(path, quantised, subspace=SUBSPACE, overwrite=True)
    assert path.read_bytes()[:2] == b"JT"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]
    with pytest.raises(ValueError, match="`path` must be a file that can be written"):
        compression.save_compressed(tmp_path / "no" / "a", quantised, subspace=SUBSPACE)


def test_damaged_and_foreign_files_say_so(tmp_path, user_land):
    path, load = tmp_path / "a", compression.load_compressed
    compression.save_compressed(
        path, compression.quantise(U, num_levels=4), subspace=SUBSPACE
    )
    whole = path.read_bytes()
    for at in range(5, len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        with pytest.raises(ValueError, match="must be complete, but is damaged"):
            load(path, init_fn=init_fn)
    for content, message in {
        whole[:-1]: "is damaged",
        whole[:4]: "must be a file of `save_compressed`",
        b"": "must be a file of `save_compressed`",
        b"\x93NUMPY and more": "must be a file of `save_compressed`",
        whole[:2] + b"\x12" + whole[3:]: "kind 0x12, which this version does not",
    }.items():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load(path, init_fn=init_fn)
    with pytest.raises(ValueError, match="`path` must be a file that can be read"):
        load(tmp_path / "none")


def test_what_a_file_does_not_hold_must_be_the_same(tmp_path, user_land):
    path, load = tmp_path / "a", compression.load_compressed
    quantised = compression.quantise(U, num_levels=4)
    compression.save_compressed(path, quantised, subspace=SUBSPACE)
    with pytest.raises(ValueError, match="must restore the parameters that it was"):
        load(path, init_fn=lambda key: jax.tree.map(lambda a: a + 1, init_fn(key)))
    with pytest.raises(ValueError, match=r"`init_fn` must be given: .* a seed draws"):
        load(path)
    with pytest.raises(ValueError, match="`start` must be left out"):
        load(path, init_fn=init_fn, start=SUBSPACE.start())
    tree = compression.quantise({"w": U}, num_levels=4)
    compression.save_compressed(tmp_path / "b", tree)
    with pytest.raises(ValueError, match=r"`init_fn` must be left out: .* all of"):
        load(tmp_path / "b", init_fn=init_fn)


def test_sums_that_agree_on_nonsense_are_damage(tmp_path, user_land):
    # A file whose check sum was made anew over what cannot be.
    from jaxtheory.compression import _file

    def write(header):
        header = zlib.compress(header)
        body = b"\0\0" + bytes([len(header)]) + header
        (tmp_path / "a").write_bytes(b"JT\x31" + _file._check_sum([body]) + body)

    for header in (
        b"[1]",
        b"{}",
        b'[[["w"],[5],"float32",0]]',
        b'[[["w"],[5],"float32",9]]',
        b'[[["w"],[-5],"float32",0]]',
        b'[[["w"],[0],"floating",0]]',
        b'[[[],[0],"float32",0]]',
    ):
        write(header)
        with pytest.raises(ValueError, match=r"but is damaged|but restores others"):
            compression.load_compressed(tmp_path / "a")


@pytest.mark.parametrize(
    ("params", "changes", "message"),
    [
        (U, {}, "but none was given"),
        (U, {"num_levels": 2, "levels": [1.0]}, "but 2 were given"),
        (U, {"num_levels": 257}, "`num_levels` must be at most 256"),
        (U, {"relative_error": 1.0}, "`relative_error` must be strictly between"),
        (U, {"levels": []}, "`levels` must be 1 to 256 numbers"),
        (U * np.nan, {"num_levels": 2}, "`params` must be finite and within half"),
        ({"w": U * 1e6}, {"num_levels": 2}, r"`params\['w'\]` must be finite"),
    ],
)
def test_bad_levels(params, changes, message, user_land):
    with pytest.raises(ValueError, match=message):
        compression.quantise(params, **changes)


def test_bad_things_to_save(tmp_path, user_land):
    save, path = compression.save_compressed, tmp_path / "a"
    quantised = compression.quantise(U, num_levels=2)
    short = compression.quantise(U[:3], num_levels=2)
    for thing, changes, message in (
        (U, {"subspace": SUBSPACE}, "`quantised` must be the `Quantised` coordinates"),
        (short, {"subspace": SUBSPACE}, "must hold the 12 coordinates .* holds 3"),
        (quantised, {}, "`quantised` must be nested dictionaries"),
        ({"w": U}, {}, "must hold `Quantised` arrays, but has a ndarray at"),
        ({}, {}, "must hold at least one array"),
        ({"w": quantised}, {"start": {}}, "`start` goes with a `subspace`"),
    ):
        with pytest.raises(ValueError, match=message):
            save(path, thing, **changes)
    assert not path.exists()


def test_straight_through_gradients():
    # d/du of sum (c_q)^2 at the levels, and of each level the sum over its values.
    square = lambda u, state, batch, key: (jnp.sum(u**2), state)
    objective = compression.straight_through(square)
    codebook = compression.Codebook(
        jnp.array([0.9, 1.2, -2.0]), jnp.array([-2.5, 1.0, 9.0])
    )
    value = lambda codebook: objective(codebook, (), (), jax.random.key(0))[0]
    assert float(value(codebook)) == pytest.approx(1 + 1 + 6.25)
    grads = jax.grad(value)(codebook)
    np.testing.assert_allclose(grads.values, [2.0, 2.0, -5.0])
    np.testing.assert_allclose(grads.levels, [-5.0, 4.0, 0.0])
    with pytest.raises(ValueError, match="must be a `Codebook`"):
        objective(jnp.zeros(3), (), (), jax.random.key(0))
