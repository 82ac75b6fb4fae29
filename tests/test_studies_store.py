"""Studies in the store: names, parts, transactions, sharing the file with other processes; files from elsewhere."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
import zipfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cache import Store
from cache.studies import Studies
from cache.verdicts import Verdicts
from core.errors import InputError, StoreBusy, StoreError
from core.requests import Fact
from core.study import archive, data, scan
from core.study.settings import preset

PLAN = {
    "chunk_tokens": 64, "threads": 1, "prefix_cost": 0.1, "scan_facts": 8, "batch_tokens": 100, "batch_bytes": 1000,
    "fresh_seed": 1_000_000,
}  # fmt: skip
PROVENANCE = {
    "model": "demo", "identity": "i", "fingerprint": "f", "dtype": "float32", "device": "cpu", "implementation": {},
    "versions": {},
}  # fmt: skip


@pytest.fixture
def book(tmp_path) -> Studies:
    return Studies(tmp_path / "store.duckdb", wait_seconds=5.0)


def add(book: Studies, name: str, **changes) -> None:
    facts = [Fact("The {} is", "s", "a", "b", case_id=i) for i in range(5)]
    values = {
        "model": "demo (f)", "settings": preset("demo", n=4).to_dict(), "plan": PLAN, "provenance": PROVENANCE,
        "state": data.CANCELLED, "progress": {}, "parts": [(data.FACTS, 0, scan.facts_to_bytes(facts))],
    }  # fmt: skip
    book.add(name, **values | changes)


def test_a_study_comes_back_as_it_was_put(book):
    add(book, " first ")
    record = book.get("first")
    assert (record.name, record.model, record.state, record.stop) == ("first", "demo (f)", data.CANCELLED, False)
    assert record.settings == preset("demo", n=4).to_dict() and record.plan == PLAN
    assert book.part_names("first") == {(data.FACTS, 0)}
    assert [r.name for r in book.all()] == ["first"]
    found = data.load(book, "first")
    assert len(found.records) == 5 and found.kept == [] and found.rows.empty


def test_a_batch_is_committed_once_and_with_its_progress(book):
    add(book, "first")
    record = book.commit("first", [("survey", 0, b"one"), ("survey", 1, b"two")], progress={"fraction": 0.5})
    assert record.progress == {"fraction": 0.5}
    with pytest.raises(StoreError, match="is there already"):
        book.commit("first", [("survey", 2, b"three"), ("survey", 1, b"again")], progress={"fraction": 0.9})
    assert book.parts("first", "survey") == {("survey", 0): b"one", ("survey", 1): b"two"}  # nothing of it was kept
    assert book.get("first").progress == {"fraction": 0.5}


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "x" * 200])
def test_names_that_are_none(book, name):
    with pytest.raises(InputError) as caught:
        add(book, name)
    assert caught.value.field == "name"


def test_names_are_taken_changed_and_freed(book):
    add(book, "first")
    add(book, "second")
    with pytest.raises(InputError, match="There is a study 'first' already"):
        add(book, "first")
    with pytest.raises(InputError, match="There is a study 'first' already"):
        book.rename("second", "first")
    book.rename("second", "zwei")
    assert book.part_names("zwei") == {(data.FACTS, 0)}
    book.delete("first")
    assert [r.name for r in book.all()] == ["zwei"]
    for gone in (book.get, book.delete, lambda name: book.update(name, stop=True), lambda name: book.rename(name, "x")):
        with pytest.raises(InputError, match="There is no study 'first'"):
            gone("first")
    add(book, "first")


def test_it_shares_the_file_within_a_process_and_survives_clearing(tmp_path, book):
    with Store.open(tmp_path / "store.duckdb") as store:
        add(book, "first")
        store.clear()
        assert [r.name for r in book.all()] == ["first"]


HOLD = """
import sys, time
sys.path.insert(0, sys.argv[3])
from cache import Store
with Store.open(sys.argv[1]):
    print("open", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def test_it_waits_for_a_store_that_another_process_has_open(tmp_path, book, request):
    add(book, "first")
    command = [sys.executable, "-c", HOLD, str(book.path), "1.0", str(request.config.rootpath)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "open\n"
        with pytest.raises(StoreBusy, match="in use by another process"):
            Studies(book.path, wait_seconds=0.0).all()
        began = time.monotonic()
        assert [r.name for r in book.all()] == ["first"]
        assert time.monotonic() - began < 5.0
        other.wait()


# ---- files from elsewhere ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> tuple[Studies, Studies]:
    """A store with the study "first", and one that stays empty."""
    folder = tmp_path_factory.mktemp("stores")
    book = Studies(folder / "one.duckdb")
    add(book, "first")
    return book, Studies(folder / "other.duckdb")


def packed(book: Studies) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(archive.pack(book, "first"))) as found:
        return {name: found.read(name) for name in found.namelist()}


def zipped(entries: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as found:
        for name, content in entries.items():
            found.writestr(name, content)
    return out.getvalue()


def head(entries: dict[str, bytes], **changes) -> dict[str, bytes]:
    values = json.loads(entries["study.json"]) | changes
    return entries | {"study.json": json.dumps({k: v for k, v in values.items() if v is not None}).encode()}


def parquet(**columns) -> bytes:
    return scan.to_parquet(pd.DataFrame(columns))


def deflated(entries: dict[str, bytes], flip: int | None = None) -> bytes:
    """As a zip that is compressed; `flip`: with that byte of the first entry's data changed."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as found:
        for name, content in entries.items():
            found.writestr(name, content)
    content = bytearray(out.getvalue())
    if flip is not None:
        content[30 + len(next(iter(entries))) + flip] ^= 0xFF
    return bytes(content)


def same_text(n: int, length: int, **columns) -> bytes:
    """Parquet of `n` rows, with one long text in every row of the column `relation`: a few hundred bytes."""
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, dtype=np.int8)), pa.array(["x" * length]))
    out = io.BytesIO()
    table = pa.table({name: pa.array([value] * n) for name, value in columns.items()} | {"relation": column})
    pq.write_table(table, out, compression="zstd", store_schema=False)
    return out.getvalue()


FACT = {"prompt": "{} is", "subject": "a", "true": "b", "foil": "c", "case_id": 1, "occurrence": 1}
DAMAGE = {
    "a zip bomb": lambda e: deflated(e | {"parts/survey-0.parquet": bytes(2**26)}),
    "damaged compression": lambda e: deflated(e, flip=2),
    "one long text": lambda e: zipped(e | {"parts/facts-0.parquet": same_text(1000, 5_000_000, **FACT)}),
    "rows without end": lambda e: zipped(e | {"rows.parquet": same_text(25_000_000, 1)}),
    "no zip": lambda e: b"not a zip file",
    "cut off": lambda e: zipped(e)[:-200],
    "no head": lambda e: zipped({k: v for k, v in e.items() if k != "study.json"}),
    "no JSON": lambda e: zipped(e | {"study.json": b"{"}),
    "no object": lambda e: zipped(e | {"study.json": b"[]"}),
    "other version": lambda e: zipped(head(e, format=99)),
    "no state": lambda e: zipped(head(e, state="running")),
    "no name": lambda e: zipped(head(e, name=None)),
    "empty name": lambda e: zipped(head(e, name=" ")),
    "settings": lambda e: zipped(head(e, settings={"n": -1})),
    "plan": lambda e: zipped(head(e, plan={})),
    "provenance": lambda e: zipped(head(e, provenance={"model": "demo"})),
    "strange entry": lambda e: zipped(e | {"../../evil.py": b""}),
    "strange stage": lambda e: zipped(e | {"parts/other-0.parquet": parquet(a=[1])}),
    "no facts": lambda e: zipped({k: v for k, v in e.items() if "facts" not in k}),
    "damaged facts": lambda e: zipped(e | {"parts/facts-0.parquet": b"PAR1"}),
    "other columns": lambda e: zipped(e | {"parts/survey-0.parquet": parquet(a=[1])}),
    "unknown outcome": lambda e: zipped(
        e | {"parts/scan-0.parquet": parquet(place=[0], outcome=["odd"], reason=[""], clean_contrast=[1.0], drop=[1.0])}
    ),
    "other rows": lambda e: zipped(e | {"rows.parquet": parquet(rescue=[1.0])}),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_or_foreign_file_is_refused(stores, damage):
    book, other = stores
    content = DAMAGE[damage](packed(book))
    with pytest.raises((InputError, StoreError)) as caught:
        archive.unpack(other, content)
    assert other.all() == []
    assert ("it is too large" in caught.value.what) == (damage in ("a zip bomb", "one long text", "rows without end"))


def test_the_undamaged_file_is_taken(stores):
    book, other = stores
    assert archive.unpack(other, zipped(packed(book))) == "first"
    assert other.parts("first") == book.parts("first")
    other.delete("first")


def test_verdicts_need_the_store_for_a_moment_only(tmp_path, request):
    path = tmp_path / "store.duckdb"
    verdicts = Verdicts(path, wait_seconds=0.0)
    verdicts.put_verdict("key", "model", {"a": 1})
    assert verdicts.get_verdict("key") == {"a": 1} and verdicts.get_verdict("other") is None
    with Store.open(path) as store:
        assert store.get_verdict("key") == {"a": 1}
    command = [sys.executable, "-c", HOLD, str(path), "0.5", str(request.config.rootpath)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "open\n"
        assert verdicts.get_verdict("key") is None  # as if it knew nothing
        verdicts.put_verdict("key", "model", {"a": 2})
        assert Verdicts(path).get_verdict("key") == {"a": 1}  # waits
        other.wait()
