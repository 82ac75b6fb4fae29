"""What is stored, piece by piece: listing, naming and deleting traces; files of traces that are exported and imported.

The traces are the demo model's; what is deleted and what stays is held against the store's own tables.
"""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from store_values import MODEL, answer, payload, routing

from cache import Store
from cache.holdings import Holdings
from core import facts, trace_archive
from core.derived import derive
from core.errors import InputError, StoreError
from core.identity import remember_identity
from core.models import load_model
from core.requests import ModelSpec, TraceRequest
from core.stored import StoredDesk
from core.trace import from_store, trace_many
from core.trace_archive import pack, unpack


@pytest.fixture(scope="module")
def model():
    return load_model("demo")


@pytest.fixture(scope="module")
def asked() -> list[TraceRequest]:
    one, other = facts.bundled()[:2]
    first = TraceRequest(one)
    return [first, first.replace(noise=2.0), first.replace(experts=(0,)), TraceRequest(other, draws=2)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store.duckdb"


@pytest.fixture
def store(path):
    with Store.open(path) as opened:
        yield opened


@pytest.fixture
def desk(path, store) -> StoredDesk:
    return StoredDesk(Holdings(path), store, lambda: None)


@pytest.fixture
def traced(model, asked, store):
    remember_identity(store, ModelSpec(), model.identity, label=model.label)
    return trace_many(model, asked, store=store)


def tables(store: Store) -> dict[str, int]:
    """Rows of every table of the store, shelves counted together."""
    names = store._database.read(lambda c: c.execute("SELECT table_name FROM duckdb_tables()").fetchall())
    out: dict[str, int] = {}
    for (name,) in names:
        count = store._database.read(lambda c, name=name: c.execute(f"SELECT count(*) FROM {name}").fetchall()[0][0])
        key = "shelf" if name.startswith("shelf_") else name
        out[key] = out.get(key, 0) + int(count)
    return out


# -- lists, names, deleting --------------------------------------------------------------------------------------------


def test_every_trace_is_listed_as_it_was_asked(desk, store, traced, asked):
    listed = desk.traces()
    assert {t.request for t in listed} == {dataclasses.replace(r, model=ModelSpec()) for r in asked}
    assert all(t.whole and not t.imported and t.label == "" for t in listed)
    by_request = {t.request: t for t in listed}
    for result in traced:
        found = by_request[result.request]
        where = result.provenance
        assert (found.model, found.dtype, found.device) == (where.model, where.dtype, where.device)
        assert found.created == where.created and 0 < found.bytes < store.contents_bytes()
    assert desk.traces() is desk.traces()  # as long as nothing changed
    keys = [t.key for t in listed]
    assert len(set(keys)) == len(asked)


def test_a_name_is_given_changed_and_taken_away(desk, traced, asked):
    key = desk.traces()[0].key
    desk.rename(key, "  the one <b>\U0001f600 ")
    assert [t.label for t in desk.traces() if t.label] == ["the one <b>\U0001f600"]
    desk.rename(key, "another")
    assert desk.traces()[0].label == "another"
    for wrong in ("x" * 121, "two\nlines"):
        with pytest.raises(InputError):
            desk.rename(key, wrong)
    desk.rename(key, "")
    assert desk.traces()[0].label == ""


def test_deleting_takes_exactly_what_no_other_trace_needs(desk, store, model, traced, asked):
    by_request = {t.request: t for t in desk.traces()}
    first, noisier, early, other = (by_request[r] for r in asked)
    before, answers = tables(store), {r: from_store(store, r) for r in asked}
    assert desk.delete([noisier.key, "no such key"]) == 1
    after = tables(store)
    # its corrupt run and that run's rows; the clean run is that of `first` too
    assert before["runs"] - after["runs"] == before["shelf"] - after["shelf"] == 1
    assert before["manifests"] - after["manifests"] == 1 and before["row_sets"] - after["row_sets"] == 3
    left = {r: from_store(store, r) for r in asked}
    assert left[asked[1]] is None
    for request in (asked[0], asked[2], asked[3]):
        pd.testing.assert_frame_equal(left[request].frame, answers[request].frame, check_exact=True)
    assert desk.delete([early.key, other.key]) == 2
    pd.testing.assert_frame_equal(from_store(store, asked[0]).frame, answers[asked[0]].frame, check_exact=True)
    assert desk.delete([first.key]) == 1 and desk.traces() == []
    assert {name: n for name, n in tables(store).items() if n} == {
        "migrations": before["migrations"], "verdicts": before["verdicts"],
    }  # fmt: skip
    again = trace_many(model, asked[:1], store=store)[0]
    assert not again.cached
    pd.testing.assert_frame_equal(again.frame, traced[0].frame, atol=1e-4)


def test_labels_outlive_eviction_but_not_deletion(desk, store, model, traced, asked):
    key = next(t.key for t in desk.traces() if t.request == asked[0])
    desk.rename(key, "kept")
    store.clear(model.label)
    assert desk.traces() == []
    remember_identity(store, ModelSpec(), model.identity, label=model.label)
    trace_many(model, asked[:1], store=store)
    assert [t.label for t in desk.traces()] == ["kept"]
    desk.delete([key])
    trace_many(model, asked[:1], store=store)
    assert [t.label for t in desk.traces()] == [""]


def test_a_trace_of_which_a_part_was_evicted_says_so(desk, store, path):
    store.write(model=MODEL, **stored_answer("a"))
    assert _only(Holdings(path)).whole
    store._database.write(lambda c: c.execute("DELETE FROM row_sets WHERE pair_key = 'a-pair1'"))
    assert not _only(Holdings(path)).whole


def _only(book: Holdings):
    (held,) = book.answers()
    return held


def stored_answer(name: str) -> dict:
    """As `store_values.answer`, with a manifest of the engine's shape."""
    made = answer(name)
    runs, pairs = [run[0] for run in made["runs"]], [row[0] for row in made["rows"]]
    manifest = {"clean": runs[0], "corrupt": runs[1:], "pairs": pairs, "parts": ["layer"]}
    return made | {"manifests": [(name, manifest)]}


def test_derived_answers_are_listed_and_deleted(desk, store, model):
    from core import validation

    few = facts.bundled()[:3]
    requests = [validation.ask(ModelSpec(), few, measure=False, object_tokens=rule) for rule in ("space", "paper")]
    for request in requests:
        derive(model, request, store=store)
    listed = desk.derived()
    assert [(d.kind, d.facts, d.settings["object_tokens"]) for d in listed] == [
        ("validation", 3, "paper"), ("validation", 3, "space"),
    ]  # fmt: skip
    assert sum(d.bytes for d in listed) == store.contents_bytes()
    assert desk.delete_derived([listed[0].key]) == 1
    assert [d.settings["object_tokens"] for d in desk.derived()] == ["space"]
    assert tables(store)["shelf"] == 1 and derive(model, requests[0], store=store).cached


def test_without_a_store_there_is_nothing_and_it_is_said():
    desk = StoredDesk(None, None, lambda: None, store_error="The disk is gone.")
    assert desk.traces() == [] and desk.derived() == []
    for attempt in (lambda: desk.delete(["k"]), lambda: desk.export(["k"]), lambda: desk.import_file(b"")):
        with pytest.raises(StoreError, match="The disk is gone"):
            attempt()


# -- runs without activations ------------------------------------------------------------------------------------------


def test_runs_may_be_stored_without_their_activations(store):
    store.write(model=MODEL, runs=[("bare", None, {"a": 1}, routing(1)), ("bare too", None, {}, routing(2))])
    store.write(model=MODEL, runs=[("whole", payload(1), {}, routing(3)), ("mixed", None, {}, routing(4))])
    assert store.get_run("bare") is None and store.get_run("mixed") is None
    assert store.get_run("whole").payload == payload(1)
    assert store.get_run_info("bare")[0] == {"a": 1} and len(store.get_run_info("mixed")[1]) == len(routing(4))
    store.set_limit(1)  # everything goes
    assert {name: n for name, n in tables(store).items() if n} == {
        "migrations": tables(store)["migrations"],
        "settings": 1,
    }


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(model, asked, tmp_path_factory) -> tuple[bytes, list]:
    """A file of traces, one of them named, and the traces."""
    with Store.open(tmp_path_factory.mktemp("exported") / "store.duckdb") as store:
        desk = StoredDesk(Holdings(store.path), store, lambda: None)
        trace_many(model, asked, store=store)
        desk.rename(desk.traces()[0].key, "named")
        answers = [trace_many(model, [request], store=store)[0] for request in asked]
        return desk.export(t.key for t in desk.traces()), answers


@pytest.fixture
def packed(exported) -> bytes:
    return exported[0]


def test_traces_come_back_from_a_file_where_there_is_no_model(exported, asked, tmp_path):
    packed, answers = exported
    with Store.open(tmp_path / "other.duckdb") as other:
        desk = StoredDesk(Holdings(other.path), other, lambda: None)
        assert desk.import_file(packed) == 4
        for request, result in zip(asked, answers, strict=True):
            found = from_store(other, request)
            for name in ("frame", "routing", "next_tokens", "runs"):
                pd.testing.assert_frame_equal(getattr(found, name), getattr(result, name), check_exact=True)
            *notes, last = found.provenance.notes
            assert notes == result.provenance.notes and "computed elsewhere" in last
        assert [t.label for t in desk.traces() if t.label] == ["named"]
        assert all(t.imported and t.whole for t in desk.traces())
        assert desk.import_file(packed) == 4 and len(desk.traces()) == 4  # a second time changes nothing
        assert from_store(other, asked[0].replace(seed=5)) is None
        again = desk.export(t.key for t in desk.traces())
        assert {m[0] for p in unpack(again) for m in p.manifests} == {m[0] for p in unpack(packed) for m in p.manifests}


def test_what_was_imported_never_stands_in_for_what_is_computed_here(packed, model, asked, tmp_path):
    with Store.open(tmp_path / "other.duckdb") as other:
        desk = StoredDesk(Holdings(other.path), other, lambda: None)
        desk.import_file(packed)
        result = trace_many(model, asked[:1], store=other)[0]
        assert not result.cached and "elsewhere" not in "".join(result.provenance.notes)
        remember_identity(other, ModelSpec(), model.identity, label=model.label)
        assert from_store(other, asked[0]).provenance.notes == result.provenance.notes
        assert len(desk.traces()) == 5


def changed(packed: bytes, change) -> bytes:
    """The file after `change(head)`, which changes the list in place or returns other contents."""
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    head = json.loads(content["traces.json"])
    other = change(head)
    content["traces.json"] = json.dumps(head).encode()
    content |= other if isinstance(other, dict) and all("." in name for name in other) else {}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return out.getvalue()


def parquet(change) -> bytes:
    frame = pd.DataFrame({"row_set": [0]})
    out = io.BytesIO()
    change(frame).to_parquet(out)
    return out.getvalue()


def test_a_table_of_one_long_text_is_refused_before_it_is_unpacked(packed):
    same = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), pa.array(["x" * 2_000_000]))
    out = io.BytesIO()
    pq.write_table(pa.table({"row_set": [0] * 5000, "kind": same}), out, compression="zstd", store_schema=False)
    assert len(out.getvalue()) < 10_000  # and ten gigabytes where each value stands for itself
    with pytest.raises(InputError, match="it is too large"):
        unpack(changed(packed, lambda head: {"rows.parquet": out.getvalue()}))


def first(head):
    return head["traces"][0]["manifest"]


@pytest.mark.parametrize(
    "change",
    [
        lambda head: head.update(format=99),
        lambda head: head["traces"].append(7),
        lambda head: head.pop("runs"),
        lambda head: head["rows"].pop(),
        lambda head: first(head)["request"].update(noise=-1),
        lambda head: first(head)["request"].update(draws=7),
        lambda head: first(head)["request"].update(unknown=1),
        lambda head: first(head)["provenance"].pop("tokens"),
        lambda head: first(head)["provenance"].update(n_layers=1),
        lambda head: first(head)["provenance"].update(tokens=["x"]),
        lambda head: first(head).update(clean="no such run"),
        lambda head: first(head).update(pairs=[]),
        lambda head: head["traces"][0].update(label="x" * 1000),
        lambda head: {"rows.parquet": b"PAR1 nothing"},
        lambda head: {"rows.parquet": parquet(lambda frame: frame)},
        lambda head: {"../evil": b"x"},
        lambda head: {"traces.json": b"[" * 100_000},
        lambda head: {"traces.json": b"\xff"},
    ],
)
def test_files_that_are_none_are_refused(packed, change):
    with pytest.raises(InputError) as caught:
        unpack(changed(packed, change))
    assert caught.value.field == "file" and "not a file of traces" in caught.value.what


@pytest.mark.parametrize("content", [b"", b"PK", b"no zip at all", b"PK\x03\x04" + bytes(100)])
def test_what_is_no_zip_file_is_refused_and_nothing_is_stored(desk, store, content):
    with pytest.raises(InputError, match="not a file of traces"):
        desk.import_file(content)
    assert desk.traces() == [] and store.contents_bytes() == 0


def test_a_file_larger_than_the_store_is_refused(packed, tmp_path):
    with Store.open(tmp_path / "other.duckdb", limit_bytes=1000) as other:
        with pytest.raises(InputError, match="more than the store's limit"):
            StoredDesk(Holdings(other.path), other, lambda: None).import_file(packed)


@pytest.mark.parametrize(("limit", "value"), [("_MOST_BYTES", 1000), ("_MOST_ROWS", 100)])
def test_a_file_that_unpacks_to_too_much_is_refused(packed, monkeypatch, limit, value):
    assert unpack(packed)
    monkeypatch.setattr(trace_archive, limit, value)
    with pytest.raises(InputError, match="it is too large"):
        unpack(packed)


def test_evicted_traces_are_left_out_of_a_file(desk, store, traced):
    manifests = [dict(held.manifest) for held in Holdings(store.path).answers()]
    store._database.write(lambda c: c.execute("DELETE FROM row_sets WHERE pair_key = ?", [manifests[0]["pairs"][0]]))
    there = [m for m in manifests if m["pairs"][0] != manifests[0]["pairs"][0]]
    assert sum(len(p.manifests) for p in unpack(pack(store, [("", m) for m in manifests]))) == len(there)
    with pytest.raises(InputError, match="no complete trace"):
        pack(store, [("", manifests[0])])
