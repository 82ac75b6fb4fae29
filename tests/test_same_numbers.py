"""Numbers that stay: the same question gives the same table, in another process, another order, after eviction, from a
store that was closed or compacted, to the last bit; and with rows chunked differently within 1e-5 (fp32)."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

import pytest
import same_numbers
from same_numbers import EXPERT, LAYER, POS, SPEC, answer, assert_equal, largest_difference, parts_of

from cache import Store
from core import derived, trace
from core.budget import Budget
from core.derived import KINDS
from core.identity import remember_identity
from core.models import load_model
from core.requests import TraceRequest
from core.room import Room

CHUNKED = 1e-5
"""How far chunking may move a number in fp32."""
ASKED = same_numbers.questions()


@pytest.fixture(scope="module")
def model():
    return load_model(SPEC.name, dtype=SPEC.dtype, device=SPEC.device)


@pytest.fixture(scope="module")
def first(model):
    """The answers as they are computed with nothing stored, by name."""
    return {name: parts_of(answer(model, question)) for name, question in ASKED.items()}


def found(store, question):
    """What the store has, without a model."""
    return (trace.from_store if isinstance(question, TraceRequest) else derived.from_store)(store, question)


def test_every_kind_of_question_is_asked(first):
    assert {question.kind for question in ASKED.values() if not isinstance(question, TraceRequest)} == set(KINDS)
    rows = first["trace"]["frame"]
    at = rows[(rows.kind == "expert") & (rows.layer == LAYER) & (rows.pos == POS) & rows.clean_active]
    assert EXPERT in set(at.expert)


def test_another_process_and_another_order_give_the_same_bits(first, tmp_path):
    file = tmp_path / "answers"
    env = os.environ | {"OMP_NUM_THREADS": str(os.environ.get("OMP_NUM_THREADS", 2))}
    command = [sys.executable, same_numbers.__file__, str(file), "last first"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    there = pickle.loads(file.read_bytes())
    assert list(there) == list(reversed(first))
    for name, parts in first.items():
        assert_equal(there[name], parts)


def test_the_store_says_the_same_after_it_was_closed_and_after_it_was_compacted(model, first, tmp_path):
    path = tmp_path / "store.duckdb"
    with Store.open(path) as store:
        remember_identity(store, SPEC, model.identity, label=model.label)
        for name, question in ASKED.items():
            result = answer(model, question, store)
            assert not result.cached
            # a part that an earlier question left in the store may have been computed among other rows
            assert largest_difference(parts_of(result), first[name]) <= CHUNKED
            first_said = parts_of(result)
            assert_equal(parts_of(found(store, question)), first_said)
        said = {name: parts_of(found(store, question)) for name, question in ASKED.items()}
    for change in (lambda store: None, Store.compact):
        with Store.open(path) as store:
            change(store)
            for name, question in ASKED.items():
                again = found(store, question)
                assert again.cached
                assert_equal(parts_of(again), said[name])


def test_what_was_evicted_is_computed_again_to_the_same_bits(model, first, tmp_path):
    with Store.open(tmp_path / "store.duckdb", limit_bytes=1) as store:  # whatever comes drives out what was there
        remember_identity(store, SPEC, model.identity, label=model.label)
        for name in ("trace", "trace of all experts", "trace", "steering", "trace of all experts"):
            assert found(store, ASKED[name]) is None
            result = answer(model, ASKED[name], store)
            assert not result.cached and found(store, ASKED[name]) is not None
            assert_equal(parts_of(result), first[name])


def test_rows_that_were_evicted_are_computed_again_from_the_activations_that_were_not(model, first, tmp_path):
    with Store.open(tmp_path / "store.duckdb") as store:
        answer(model, ASKED["trace"], store)
        for table in ("result_rows", "row_sets"):
            store._database.write(lambda cursor, table=table: cursor.execute(f"DELETE FROM {table}"))
        again = answer(model, ASKED["trace"], store)
        assert not again.cached
        assert largest_difference(parts_of(again), first["trace"]) <= CHUNKED
        ends = [frame[frame.kind.isin(["clean", "corrupt"])] for frame in (again.frame, first["trace"]["frame"])]
        assert ends[0].equals(ends[1])


def test_rows_chunked_differently_differ_in_the_last_digits_at_most(model, first, monkeypatch):
    small = Budget(chunk_tokens=Room(32), kept_bytes=20_000)
    monkeypatch.setattr(Budget, "measure", classmethod(lambda cls, model: small))
    difference = {name: largest_difference(parts_of(answer(model, q)), first[name]) for name, q in ASKED.items()}
    assert max(difference.values()) <= CHUNKED, difference
    assert max(difference.values()) > 0  # else nothing was chunked differently
