"""The store: what goes in comes out, all of it or nothing, and the least recently used goes first."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from store_values import MODEL, answer, parts_there, payload, routing, rows, same

from cache import Store, default_path, entries, frames, shelves
from cache.location import home as home_of
from core.errors import StoreError


@pytest.fixture
def store(home: Path):
    with Store.open() as opened:
        yield opened


# -- where it is -----------------------------------------------------------------------------------------------------


def test_location_follows_the_variable_and_the_platform(home, tmp_path, monkeypatch):
    assert default_path() == home / "store.duckdb"
    monkeypatch.setattr(Path, "home", lambda: Path("/home/ada"))
    assert home_of({}, platform="linux") == Path("/home/ada/.cache/expertscope")
    assert home_of({"XDG_CACHE_HOME": "/var/cache/ada"}, platform="linux") == Path("/var/cache/ada/expertscope")
    assert home_of({"XDG_CACHE_HOME": "relative"}, platform="linux") == Path("/home/ada/.cache/expertscope")
    assert home_of({}, platform="darwin") == Path("/home/ada/Library/Caches/expertscope")
    assert home_of({"LOCALAPPDATA": "/local"}, platform="win32") == Path("/local/expertscope")
    assert home_of({"EXPERTSCOPE_HOME": "/there", "XDG_CACHE_HOME": "/var"}, platform="linux") == Path("/there")


# -- round trips -----------------------------------------------------------------------------------------------------


def test_a_run_comes_back_byte_for_byte(store):
    data = payload(1, 3_000_001)
    info = {
        "ids": [1, 2],
        "p": 0.1 + 0.2,
        "text": "Zoë \udcff\x00 '); DROP TABLE runs; --",
        "nan": math.nan,
        "no": None,
    }
    store.write(model=MODEL, runs=[("k", data, info, routing(1)), ("empty", b"", {}, routing(1, 0))])
    run = store.get_run("k")
    assert run.payload == data
    assert {**run.info, "nan": None} == {**info, "nan": None} and math.isnan(run.info["nan"])
    assert same(run.routing, routing(1))
    info_only, routing_only = store.get_run_info("k")
    assert info_only["p"] == 0.1 + 0.2 and same(routing_only, routing(1))
    empty = store.get_run("empty")
    assert (empty.payload, empty.info, len(empty.routing)) == (b"", {}, 0)
    assert dict(empty.routing.dtypes.astype(str)) == dict(run.routing.dtypes.astype(str)) == frames.ROUTING_COLUMNS


def test_rows_come_back_value_for_value_and_in_order(store):
    written = rows(3, 500)
    written.loc[5, "true_logit"] = np.inf
    written.loc[6, "true_logit"] = -0.0
    written.loc[7, "true_logit"] = 5e-324
    store.write(model=MODEL, rows=[("pair", "layer", written, {"seed": 1}), ("pair", "none", rows(1, 2)[:0], {})])
    read = store.get_rows("pair", "layer")
    assert same(read, written)
    assert math.copysign(1, read.true_logit[6]) == -1
    assert dict(read.dtypes.astype(str)) == frames.ROW_COLUMNS
    assert store.get_provenance("pair", "layer") == {"seed": 1}
    nothing = store.get_rows("pair", "none")
    assert len(nothing) == 0 and dict(nothing.dtypes.astype(str)) == frames.ROW_COLUMNS
    # a table not yet stored, brought into the same form, is equal in types as well
    pd.testing.assert_frame_equal(read, frames.normalise(written, frames.ROW_COLUMNS))


def test_extra_columns_are_left_and_near_tie_may_be_absent(store):
    table = routing(2).drop(columns="near_tie").assign(token="x")
    store.write(model=MODEL, runs=[("k", b"1", {}, table)])
    read = store.get_run("k").routing
    assert same(read.drop(columns="near_tie"), table.drop(columns="token")) and read.near_tie.isna().all()


def test_many_at_once_gives_those_that_are_there(store):
    store.write(model=MODEL, **answer("a", seed=10, draws=11))
    pairs = [(f"a-pair{i}", "layer") for i in (7, 2, 99, 5)] + [("a-pair1", "other part")]
    found = store.get_many_rows(pairs)
    assert list(found) == [("a-pair7", "layer"), ("a-pair2", "layer"), ("a-pair5", "layer")]
    assert all(same(found[f"a-pair{i}", "layer"], rows(10 + i)) for i in (7, 2, 5))
    infos = store.get_many_run_info(["a-run3", "gone", "a-run0"])
    assert list(infos) == ["a-run3", "a-run0"]
    assert infos["a-run3"][0] == {"draw": 3} and same(infos["a-run0"][1], routing(10))
    assert store.get_many_provenance([("a-pair3", "layer")]) == {("a-pair3", "layer"): {"origin": "a", "draw": 3}}
    assert store.get_many_rows([]) == {} == store.get_many_run_info([])


def test_what_is_not_there_is_none(store):
    assert store.get_manifest("x") is None and store.get_verdict("x") is None
    assert store.get_run("x") is None and store.get_run_info("x") is None
    assert store.get_rows("x", "layer") is None and store.get_provenance("x", "layer") is None


def test_keys_and_texts_are_data_and_never_sql(store):
    nasty = "'; DROP TABLE runs; --\"$1?{}\n\x00🦆"
    store.write(
        model=nasty,
        runs=[(nasty, b"x", {nasty: nasty}, routing())],
        rows=[(nasty, nasty, rows().assign(kind=nasty), {nasty: nasty})],
        manifests=[(nasty, {nasty: [nasty]})],
    )
    store.put_verdict(nasty, nasty, {nasty: nasty})
    assert store.get_run(nasty).info == {nasty: nasty}
    assert set(store.get_rows(nasty, nasty).kind) == {nasty}
    assert store.get_provenance(nasty, nasty) == store.get_verdict(nasty) == {nasty: nasty}
    assert store.get_manifest(nasty) == {nasty: [nasty]}
    assert store.usage().model.tolist() == [nasty]
    store.clear("' OR 1=1 --")
    assert store.get_run(nasty) is not None
    store.clear(nasty)
    assert store.get_run(nasty) is None and store.get_manifest(nasty) is None


def test_numpy_values_in_json_become_plain_ones(store):
    store.write(model=MODEL, manifests=[("k", {"a": np.float64(0.1), "b": np.arange(2), "c": np.bool_(True)})])
    assert store.get_manifest("k") == {"a": 0.1, "b": [0, 1], "c": True}
    with pytest.raises(StoreError, match="set cannot be stored"):
        store.write(model=MODEL, manifests=[("k", {"a": {1}})])


def test_everything_is_there_after_opening_again(store, home):
    store.write(model=MODEL, **answer("a"))
    store.put_verdict("v", MODEL, {"ok": True})
    store.close()
    with Store.open() as again:
        assert parts_there(again, "a") == [True] * 5
        assert same(again.get_rows("a-pair1", "layer"), rows(1)) and again.get_run("a-run1").payload == payload(1)
        assert again.get_verdict("v") == {"ok": True}
    assert not (home / "store.duckdb.wal").exists()


def test_a_closed_store_says_so(store):
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.get_manifest("x")
    with pytest.raises(StoreError, match="closed"):
        store.write(model=MODEL)


# -- writing ---------------------------------------------------------------------------------------------------------


def test_the_same_key_twice_keeps_runs_and_rows_and_replaces_manifests_and_verdicts(store):
    store.write(model=MODEL, **answer("a", seed=1))
    before = store.contents_bytes()
    store.write(model=MODEL, **{**answer("a", seed=50), "manifests": [("a", {"second": True})]})
    assert store.get_run("a-run0").payload == payload(1) and same(store.get_rows("a-pair0", "layer"), rows(1))
    assert store.get_manifest("a") == {"second": True}
    assert store.contents_bytes() == before + len('{"second": true}') - len(json.dumps(answer("a")["manifests"][0][1]))
    store.put_verdict("v", MODEL, {"ok": False})
    store.put_verdict("v", MODEL, {"ok": True})
    assert store.get_verdict("v") == {"ok": True}
    usage = store.usage().iloc[0]
    assert (usage.runs, usage.row_sets, usage.manifests) == (2, 2, 1)


@pytest.mark.parametrize("step", ["put_runs", "put_rows", "put_json", "evict"])
def test_a_failure_in_the_middle_leaves_nothing_and_the_store_goes_on(store, monkeypatch, step):
    store.write(model=MODEL, **answer("old"))
    before = store.contents_bytes()

    def fail(*args, **kwargs):
        if step == "put_runs":
            shelves.put(args[0], 1, [(1, b"half a shelf")])
        raise RuntimeError("pulled the plug")

    with monkeypatch.context() as patched:
        target = "cache.eviction.evict" if step == "evict" else f"cache.entries.{step}"
        patched.setattr(target, fail)
        with pytest.raises(RuntimeError, match="plug"):
            store.write(model=MODEL, **answer("new"))
    assert parts_there(store, "new") == [False] * 5
    assert store.contents_bytes() == before
    store.write(model=MODEL, **answer("new"))
    assert parts_there(store, "new") == parts_there(store, "old") == [True] * 5


def test_a_table_that_does_not_fit_is_refused_before_anything_is_written(store):
    good = answer("a")
    bad_rows = [
        (rows().drop(columns="foil_logit"), "foil_logit"),
        (rows().assign(layer="top"), "layer"),
        (rows().assign(layer=0.5), "layer"),
        (rows().assign(kind=None), "kind"),
        (rows().assign(true_logit="high"), "true_logit"),
    ]
    for bad, column in bad_rows:
        with pytest.raises(StoreError, match=column):
            store.write(model=MODEL, **{**good, "rows": [*good["rows"], ("bad", "layer", bad, {})]})
    with pytest.raises(StoreError, match="expert"):
        store.write(model=MODEL, runs=[("r", b"", {}, routing().assign(expert=None))])
    assert parts_there(store, "a") == [False] * 5 and store.contents_bytes() == 0


def test_eight_threads_with_racing_keys(store):
    """Writers race for five answers; readers must only ever see a whole answer with its right values, or none."""
    names = [f"a{i}" for i in range(5)]
    problems: list[object] = []
    start = threading.Barrier(8)

    def work(thread: int) -> None:
        try:
            rng = np.random.default_rng(thread)
            start.wait()
            for _ in range(6):
                name = str(rng.choice(names))
                seed = 100 * names.index(name)
                if rng.random() < 0.5:
                    store.write(model=MODEL, **answer(name, seed=seed, size=2000))
                    store.put_verdict(name, MODEL, {"by": thread})
                manifest = store.get_manifest(name)
                if manifest is None:
                    continue
                tables = store.get_many_rows([tuple(pair) for pair in manifest["pairs"]])
                if [same(table, rows(seed + i)) for i, table in enumerate(tables.values())] != [True, True]:
                    problems.append((name, tables))
                if [store.get_run(key).payload for key in manifest["runs"]] != [
                    payload(seed + i, 2000) for i in (0, 1)
                ]:
                    problems.append((name, "payload"))
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    usage = store.usage().iloc[0]
    written = sum(parts_there(store, name)[0] for name in names)
    assert (usage.runs, usage.row_sets, usage.manifests) == (2 * written, 2 * written, written) and written > 1


def test_conflicts_reported_by_the_database_are_tried_again(store, monkeypatch):
    """Another transaction on the same file, outside our lock, is about to delete the row that we replace."""
    store.put_verdict("v", MODEL, {"n": 0})
    other = store._database._connect().cursor()
    other.execute("BEGIN TRANSACTION")
    other.execute("DELETE FROM verdicts WHERE key = 'v'")
    attempts = []
    put_json = entries.put_json

    def counted(*args):
        attempts.append(1)
        if len(attempts) == 3:
            other.execute("COMMIT")
        put_json(*args)

    monkeypatch.setattr("cache.entries.put_json", counted)
    store.put_verdict("v", MODEL, {"n": 2})
    other.close()
    assert len(attempts) == 3 and store.get_verdict("v") == {"n": 2}
    found = store._database.read(lambda cursor: cursor.execute("SELECT count(*) FROM verdicts").fetchall())
    assert found == [(1,)]


def test_two_opens_in_one_process_share_the_file(store):
    with Store.open() as second:
        second.write(model=MODEL, **answer("a"))
        assert parts_there(store, "a") == [True] * 5
    assert parts_there(store, "a") == [True] * 5  # closing one does not close the other


# -- size, limit, clearing -------------------------------------------------------------------------------------------


def test_usage_counts_per_model(store):
    store.write(model="small", **answer("a", size=1000))
    store.write(model="large", **answer("b", size=50_000, draws=3))
    store.put_verdict("v", "small", {"ok": True})
    usage = store.usage().set_index("model")
    assert list(usage.index) == ["large", "small"]
    assert usage.loc["large", ["runs", "row_sets", "manifests"]].tolist() == [3, 3, 1]
    assert usage.bytes.sum() == store.contents_bytes()
    assert store.shares() == list(usage.bytes.items())
    assert 150_000 < usage.bytes["large"] < 170_000
    assert abs(pd.Timestamp.now("UTC") - usage.last_used["small"]) < pd.Timedelta(minutes=5)
    assert store.size() >= (store.path.stat()).st_size > 0


def test_counted_bytes_are_about_what_the_file_takes(store):
    for i in range(12):
        store.write(model=MODEL, **answer(f"a{i}", seed=20 * i, size=150_000, draws=4))
    store.compact()
    assert 0.8 < store.contents_bytes() / store.size() < 1.2


def put(store: Store, name: str, size: int = 50_000) -> None:
    """One run and nothing else: one thing that is evicted as a whole."""
    store.write(model=MODEL, runs=[(name, bytes(size), {}, routing(0, 0))])


def keys_there(store: Store) -> str:
    """Keys of the runs in the store, found past the interface so that it does not count as a use."""
    query = "SELECT key FROM runs ORDER BY key"
    return "".join(key for (key,) in store._database.read(lambda cursor: cursor.execute(query).fetchall()))


def test_the_least_recently_used_go_first(store):
    for name in "abcd":
        put(store, name)
    assert store.get_run("a") is not None and list(store.get_many_run_info(["b"])) == ["b"]
    store.set_limit(160_000)  # room for three; in the order of their last use: c d a b
    assert keys_there(store) == "abd"
    put(store, "e")
    assert keys_there(store) == "abe"
    assert store.get_run_info("a") is not None
    put(store, "f")
    assert keys_there(store) == "aef"
    put(store, "a")  # writing what is there is a use as well
    put(store, "g", size=90_000)
    assert keys_there(store) == "ag" and store.contents_bytes() <= 160_000


def test_eviction_against_a_plain_model_of_it(home):
    """Random writes and reads of runs, row sets and manifests; the model is a list in the order of last use."""
    rng = np.random.default_rng(7)
    limit, order, size = 60_000, [], {}
    with Store.open(limit_bytes=limit) as store:
        for _ in range(90):
            kind, name = str(rng.choice(["runs", "rows", "manifests"])), str(rng.integers(20))
            entry = (kind, name)
            n = int(rng.integers(1, 12))
            if rng.random() < 0.5:
                before, known = store.contents_bytes(), entry in order
                reads = {
                    "runs": lambda name=name: store.get_run(name),
                    "rows": lambda name=name: store.get_rows(name, "layer"),
                    "manifests": lambda name=name: store.get_manifest(name),
                }
                assert (reads[kind]() is not None) == known
                assert store.contents_bytes() == before
            else:
                values = {
                    "runs": [(name, bytes(1000 * n), {}, routing(0, n))],
                    "rows": [(name, "layer", rows(0, 40 * n), {})],
                    "manifests": [(name, {"": "x" * 500 * n})],
                }
                if not known_or_manifest(entry, order):
                    size[entry] = {"runs": 1000 * n + 2 + 48 * n, "rows": 40 * n * 48 + 2, "manifests": 500 * n + 8}[
                        kind
                    ]
                store.write(model=MODEL, **{kind: values[kind]})
                known = True
            if known:
                order = [other for other in order if other != entry] + [entry]
            while sum(size[other] for other in order) > limit:
                order.pop(0)
            assert store.contents_bytes() == sum(size[other] for other in order)
    assert len(order) < len(size)


def known_or_manifest(entry: tuple[str, str], order: list[tuple[str, str]]) -> bool:
    """Whether writing `entry` again leaves the stored one as it is."""
    return entry[0] != "manifests" and entry in order


def test_runs_written_together_go_together(store):
    store.write(model=MODEL, runs=[(key, bytes(50_000), {}, routing(0, 0)) for key in "abc"])
    put(store, "d")
    assert store.get_run("b") is not None  # so that d is the oldest now, before the shelf of a, b and c
    store.set_limit(160_000)
    assert keys_there(store) == "abc"
    put(store, "e")
    assert keys_there(store) == "e"


def test_uses_are_remembered_over_a_restart(home):
    with Store.open() as store:
        for name in "abc":
            put(store, name)
        store.get_run("a")
    with Store.open(limit_bytes=110_000) as store:
        assert (keys_there(store), store.limit) == ("ac", 110_000)
    with Store.open() as store:
        assert store.limit == 110_000


def test_reading_writes_down_uses_once_a_minute(home, monkeypatch):
    """The second store object stands for the next process after a kill: it knows only what is in the file."""
    with Store.open() as store:
        put(store, "a")
        put(store, "b")
        store.get_run("a")
        monkeypatch.setattr("cache.store._FLUSH_SECONDS", -1.0)
        store.get_run("a")
        with Store.open() as other:
            other.set_limit(60_000)
            assert keys_there(other) == "a"


def test_uses_survive_a_write_that_failed(store, monkeypatch):
    put(store, "a")
    put(store, "b")
    store.get_run("a")
    with monkeypatch.context() as patched:
        patched.setattr("cache.entries.put_json", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            store.put_verdict("v", MODEL, {})
    store.set_limit(60_000)
    assert keys_there(store) == "a"


def test_what_a_write_puts_in_stays_even_if_it_is_over_the_limit(home):
    with Store.open(limit_bytes=100_000) as store:
        put(store, "a")
        store.write(model=MODEL, **answer("big", seed=5, size=200_000))
        assert parts_there(store, "big") == [True] * 5 and store.get_run("a") is None
        put(store, "b")
        assert keys_there(store) == "b" and store.contents_bytes() <= 100_000


def test_a_limit_must_be_positive(store):
    for wrong in (0, -5):
        with pytest.raises(StoreError, match="above 0"):
            store.set_limit(wrong)


def test_freed_space_is_used_again(home):
    with Store.open(limit_bytes=3_000_000) as store:
        sizes = []
        for i in range(30):
            store.write(model=MODEL, **answer(f"a{i}", seed=3 * i, size=600_000))
            sizes.append(store.size())
        assert store.contents_bytes() <= 3_000_000
    # 36 MB went through it; DuckDB's own log may hold another 16 MB before it is folded in
    assert max(sizes) < 3_000_000 + 16_800_000 + 8_000_000
    assert store.path.stat().st_size < 12_000_000


def test_clear_by_model_and_all_shrinks_the_file(store):
    store.write(model="one", **answer("a", size=500_000))
    store.write(model="two", **answer("b", seed=5, size=500_000))
    for model in ("one", "two"):
        store.put_verdict(model, model, {"ok": True})
    full = store.size()
    store.clear("one")
    assert not any(parts_there(store, "a")) and store.get_verdict("one") is None
    assert parts_there(store, "b") == [True] * 5 and store.get_verdict("two") == {"ok": True}
    assert same(store.get_rows("b-pair1", "layer"), rows(6)) and store.get_run("b-run1").payload == payload(6, 500_000)
    assert store.usage().model.tolist() == ["two"]
    assert store.size() < 0.7 * full
    store.set_limit(123_456_789)
    store.clear()
    assert len(store.usage()) == 0 and store.contents_bytes() == 0 and store.limit == 123_456_789
    assert store.size() < 300_000
    store.write(model="one", **answer("a"))
    assert parts_there(store, "a") == [True] * 5


def test_compacting_while_others_read_and_write(store):
    for i in range(6):
        store.write(model=MODEL, **answer(f"a{i}", seed=10 * i, size=100_000))
    problems: list[object] = []
    stop = threading.Event()

    def use(thread: int) -> None:
        try:
            n = 0
            while not stop.is_set() or n < 3:
                i = (thread + n) % 6
                if store.get_run(f"a{i}-run1").payload != payload(10 * i + 1, 100_000):
                    problems.append(i)
                store.write(model=MODEL, **answer(f"t{thread}-{n}", seed=n, size=1000))
                n += 1
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=use, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(4):
        store.compact()
    stop.set()
    for thread in threads:
        thread.join()
    assert problems == []
    assert all(all(parts_there(store, f"t{i}-{n}")) for i in range(4) for n in range(3))
    assert [path.name for path in store.path.parent.iterdir() if "compact" in path.name] == []


def test_a_cached_answer_is_read_from_few_queries(store, monkeypatch):
    """Manifest, 11 run infos and 11 row sets of 1,000 rows: three reads, whatever the number of draws."""
    big = answer("a", draws=11, size=10_000)
    big["rows"] = [(pair, part, rows(i, 1000), prov) for i, (pair, part, _, prov) in enumerate(big["rows"])]
    store.write(model=MODEL, **big)
    transactions = []
    read = store._database.read
    monkeypatch.setattr(store._database, "read", lambda work: transactions.append(1) or read(work))
    manifest = store.get_manifest("a")
    infos = store.get_many_run_info(manifest["runs"])
    tables = store.get_many_rows([tuple(pair) for pair in manifest["pairs"]])
    assert len(transactions) == 3
    assert len(infos) == 11 and [len(table) for table in tables.values()] == [1000] * 11
    assert same(tables["a-pair10", "layer"], rows(10, 1000))


def test_how_full_the_store_is_is_read_again_only_after_a_change(store, monkeypatch):
    def seen() -> tuple:
        return store.limit, store.contents_bytes(), store.usage().to_dict("list")

    store.write(model=MODEL, **answer("a"))
    before = seen()
    transactions = []
    read = store._database.read
    monkeypatch.setattr(store._database, "read", lambda work: transactions.append(1) or read(work))
    assert seen() == before and not transactions
    mine = store.usage()
    mine["bytes"] = 0
    assert seen() == before
    with Store.open(store.path) as other:  # the same file in the same process
        other.write(model="other", **answer("b"))
        assert seen() == (other.limit, other.contents_bytes(), other.usage().to_dict("list"))
        assert set(seen()[2]["model"]) == {MODEL, "other"} and seen()[1] > before[1]
        other.set_limit(12_345_678)
    assert store.limit == 12_345_678
    store.clear()
    assert seen() == (12_345_678, 0, {name: [] for name in before[2]})
