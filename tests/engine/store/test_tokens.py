"""Batches of tokens against the hidden states and coordinates of the whole store."""

import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import StrataError, UsageError
from engine.store import Store, TokenBatch, layout, open_store, write_part
from engine.vocabulary import ROLE_CODES
from tests.engine.store import builders
from tests.engine.store.builders import TinyStore, tiny_store
from tests.engine.store.kept_roles import keep_roles

FIELDS = TokenBatch._fields


def oracle(store: Store) -> TokenBatch:
    """Every stored token in stored order, states (token, layer, dim)."""
    states = store.hidden_states
    places = [np.arange(part.tokens) for part in store.parts]
    samples, first = [], 0
    for part in store.parts:
        runs = [[range(run["start"], run["stop"]) for run in own] for own in part.samples["segments"]]
        for token in range(part.tokens):
            samples.append(first + next(row for row, own in enumerate(runs) if any(token in run for run in own)))
        first += len(runs)
    coordinates = (np.asarray(states[name]) for name in ("role", "token_id", "position", "part"))
    return TokenBatch(
        states.values.swapaxes(0, 1), *coordinates, np.concatenate(places).astype(np.int32), np.array(samples)
    )


def rows_of(batch: TokenBatch, rows: Sequence[int] | np.ndarray) -> TokenBatch:
    return TokenBatch(*(field[rows] for field in batch))


def joined(batches: Sequence[TokenBatch]) -> TokenBatch:
    return TokenBatch(*(np.concatenate(fields) for fields in zip(*batches, strict=True)))


def sorted_rows(store: Store, batch: TokenBatch) -> TokenBatch:
    where = store.samples["store"].factorize()[0][batch.sample]
    return rows_of(batch, np.lexsort([batch.token, batch.part, where]))


def assert_same(left: TokenBatch, right: TokenBatch) -> None:
    for name, one, other in zip(FIELDS, left, right, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=name)
        assert one.dtype == other.dtype, name


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Two stores of several windows per part, one with a part without samples, one without shared prefixes."""
    folder = tmp_path_factory.mktemp("tokens")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "INNER_CHUNK_BYTES", 5 * 128 * 2)
        patch.setattr(layout, "SHARD_BYTES", 1000)
        one = tiny_store(folder / "one", layers=[0, 2, 5], dim=128, images=5, parts=3, empty_parts=1)
        two = tiny_store(folder / "two", seed=1, layers=[0, 2, 5], dim=128, images=3, parts=2, shared_prefix=False)
        yield open_store([one.path, two.path])


@pytest.fixture(scope="module")
def expected(pair: Store) -> TokenBatch:
    return oracle(pair)


@settings(max_examples=30)
@given(
    layer=st.one_of(st.sampled_from([0, 2, 5]), st.lists(st.sampled_from([0, 2, 5]), min_size=1, max_size=3)),
    roles=st.one_of(st.none(), st.sets(st.sampled_from(["special", "image", "instruction", "target"]), min_size=1)),
    batch=st.integers(1, 60),
    shuffle=st.one_of(st.none(), st.integers(0, 2**64)),
    more=st.integers(0, 60_000),
    drop_last=st.booleans(),
)
def test_every_token_once_with_all_that_is_known_of_it(
    pair: Store,
    expected: TokenBatch,
    layer: int | list[int],
    roles: set[str] | None,
    batch: int,
    shuffle: int | None,
    more: int,
    drop_last: bool,
) -> None:
    ask = {"layer": layer, "roles": roles, "batch": batch, "shuffle": shuffle}
    with pytest.raises(UsageError) as refused:
        pair.tokens(**ask, memory=1)
    memory = int(re.search(r"need (\d+) bytes", str(refused.value))[1]) + more
    batches = list(pair.tokens(**ask, memory=memory, drop_last=drop_last))

    numbers = [0, 2, 5]
    index = numbers.index(layer) if isinstance(layer, int) else [numbers.index(one) for one in layer]
    kept = np.isin(expected.role, [ROLE_CODES[role] for role in roles]) if roles else np.ones(len(expected.role), bool)
    wanted = rows_of(expected._replace(states=expected.states[:, index]), kept)
    full, rest = divmod(len(wanted.role), batch)
    lengths = [batch] * full + [rest] * (rest > 0 and not drop_last)
    assert [len(found.role) for found in batches] == lengths
    for found in batches:
        assert all(field.flags.c_contiguous and field.flags.writeable for field in found)
    if not lengths:
        return
    found = joined(batches)
    if not drop_last or not rest:
        assert_same(found if shuffle is None else sorted_rows(pair, found), wanted)
    else:  # each at most once, and with its own values
        places = {key: place for place, key in enumerate(keys(pair, wanted))}
        rows = [places.pop(key) for key in keys(pair, found)]
        assert_same(found, rows_of(wanted, rows))


def keys(store: Store, batch: TokenBatch) -> list[tuple[int, ...]]:
    where = store.samples["store"].factorize()[0][batch.sample]
    return list(zip(where.tolist(), batch.part.tolist(), batch.token.tolist(), strict=True))


def test_a_seed_is_an_order(pair: Store) -> None:
    def order(seed: int | None, **options: int) -> list[tuple[int, ...]]:
        return keys(pair, joined(list(pair.tokens(layer=2, batch=10, shuffle=seed, **options))))

    assert order(7) == order(7)
    assert order(7) == order(7, memory=2**29)  # either holds the whole store
    assert len({tuple(order(seed)) for seed in (None, *range(5))}) == 6


def test_the_order_depends_on_nothing_but_the_store(pair: Store, tmp_path: Path) -> None:
    first = pair.samples["store"].iloc[0]
    shutil.copytree(first, tmp_path / "moved")
    orders = [
        [batch.token.tolist() for batch in open_store(path).tokens(layer=0, batch=9, shuffle=3)]
        for path in (first, tmp_path / "moved")
    ]
    assert orders[0] == orders[1]


def test_windows_need_not_be_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_store(tmp_path / "store")
    monkeypatch.setattr(layout, "INNER_CHUNK_BYTES", 7 * 16 * 2)
    store = open_store(tmp_path / "store")
    wanted = oracle(store)
    for shuffle in (None, 1):
        batches = list(store.tokens(layer=store.layers, batch=4, shuffle=shuffle))
        assert_same(sorted_rows(store, joined(batches)), wanted)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_torch_takes_the_states(tmp_path: Path, dtype: str) -> None:
    store = open_store(tiny_store(tmp_path / "store", dtype=dtype).path)
    probe = torch.zeros(16)
    for batch in store.tokens(layer=3, batch=20, shuffle=0):
        states = torch.from_numpy(batch.states)
        assert states.dtype == (torch.float16 if dtype == "float16" else torch.float32)
        states -= states.mean(0)  # in place, in the caller's own memory
        probe += states.float().abs().sum(0)
    assert probe.isfinite().all()
    again = joined(list(store.tokens(layer=3, batch=20)))
    np.testing.assert_array_equal(again.states, store.hidden_states.sel(layer=3))


def test_positions_with_gaps(tmp_path: Path) -> None:
    tiny = tiny_store(tmp_path / "store", written=[])
    roles = ("image", "instruction")
    for number in range(2):
        samples = [sample for sample in tiny.samples.values() if sample.part == number]
        content = keep_roles(builders.tiny_part(number, samples, layers=range(5), dim=16), roles)
        write_part(tiny.path, content, plan_sha256=str(tiny.record["plan_sha256"]))
    store = open_store(tiny.path)
    found = joined(list(store.tokens(layer=4, batch=7, shuffle=2)))
    assert_same(sorted_rows(store, found), oracle(store)._replace(states=store.hidden_states.sel(layer=4).values))
    names = store.samples["sample_id"].to_numpy()[found.sample]
    for state, name, position in zip(found.states, names, found.position, strict=True):
        np.testing.assert_array_equal(state, tiny.samples[name].states[4, position])


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        ({"layer": 1}, "layer 1 is not stored: stored are 0, 2, 5"),
        ({"layer": []}, "no layer is named"),
        ({"roles": ["image", "picture"]}, "role 'picture' are not stored: stored are special, preamble, image"),
        ({"batch": 0}, "batch=0: at least 1 token"),
        ({"shuffle": False}, "shuffle=False is no seed"),
        ({"shuffle": -1}, "shuffle=-1 is no seed"),
        ({"shuffle": 1.5}, r"shuffle=1\.5 is no seed"),
        (
            {"memory": 1000, "batch": 8},
            r"memory=1000 is too small: 1 layer of \d+ tokens.* batches of 8 .*raise memory",
        ),
    ],
)
def test_wrong_requests_are_refused_at_once(pair: Store, ask: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pair.tokens(**{"layer": 2, **ask})


def test_a_store_without_hidden_states(tmp_path: Path) -> None:
    store = open_store(tiny_store(tmp_path / "store", residual=False).path)
    with pytest.raises(UsageError, match=r"holds no hidden states but .*pooled: extract with --capture residual"):
        store.tokens(layer=0)


def test_no_part_and_no_token(tmp_path: Path) -> None:
    with pytest.raises(StrataError, match=r"no part of .* is committed yet"):
        open_store(tiny_store(tmp_path / "a", written=[]).path).tokens(layer=0)
    bad = open_store(tiny_store(tmp_path / "b", empty_parts=1, written=[2]).path)
    for shuffle in (None, 0):
        assert list(bad.tokens(layer=0, shuffle=shuffle)) == []


def test_a_token_of_no_sample_is_damage(tmp_path: Path) -> None:
    tiny: TinyStore = tiny_store(tmp_path / "store", parts=1, written=[])
    content = builders.tiny_part(0, list(tiny.samples.values()), layers=range(5), dim=16, pooled=False)
    one_less = content.samples.slice(0, len(tiny.samples) - 1)
    part = builders.PartContent(0, content.arrays, content.coordinates, one_less, (), content.run, 1.0)
    write_part(tiny.path, part, plan_sha256=str(tiny.record["plan_sha256"]))
    with pytest.raises(StrataError, match=r"part 00000000 of .* tokens that belong to no sample"):
        list(open_store(tiny.path).tokens(layer=0))
