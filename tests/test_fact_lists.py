"""Which facts are meant: fact sets and their links, and the named lists of facts in the store."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from dataclasses import replace

import duckdb
import pytest

from cache import Store
from cache.fact_lists import FactLists
from cache.migrations import migrate
from core.errors import InputError, StoreError
from core.fact_lists import FactListDesk
from core.fact_sets import FactSet, choose, sentence
from core.links import Reader
from core.requests import Fact


def fact(number: int, relation: str | None = "r", **more) -> Fact:
    return Fact("The {} is", f"subject {number}", "a", "b", case_id=number, relation=relation, **more)


KNOWN = [fact(i, ("capital", "language|a%7C", None)[i % 3]) for i in range(30)]


# -- fact sets ---------------------------------------------------------------------------------------------------------


def read(params: dict[str, str]) -> tuple[FactSet, list[str]]:
    reader = Reader(params)
    return FactSet.from_query(reader), reader.problems


@pytest.mark.parametrize(
    "fact_set",
    [
        FactSet(),
        FactSet("my list", ("language|a%7C", "capital"), None, 7),
        FactSet(relations=("a|b", "%", "%7C", "%257C"), n=1, seed=2**62),
    ],
)
def test_a_fact_set_comes_back_from_its_link(fact_set):
    assert read(fact_set.to_query()) == (fact_set, [])


def test_only_what_differs_from_the_default_is_in_the_link():
    assert FactSet().to_query() == {}
    assert FactSet("x", ("b", "a"), None, 3).to_query() == {
        "facts": "x", "relations": "a|b", "n": "all", "facts_seed": "3",
    }  # fmt: skip
    mine = FactSet(n=8)
    assert mine.to_query(mine) == {} and FactSet().to_query(mine) == {"n": "64"}
    assert FactSet.from_query(Reader({}), mine) == mine


def test_a_wrong_link_is_said_and_replaced():
    found, problems = read({"n": "0", "facts_seed": "-1", "relations": "||capital| |", "facts": "  "})
    assert found == FactSet(relations=("capital",))
    assert len(problems) == 2 and "n=0" in problems[0] and "facts_seed=-1" in problems[1]


@pytest.mark.parametrize("wrong", [{"n": 0}, {"n": True}, {"seed": -1}, {"source": " "}, {"n": 1.5}])
def test_a_fact_set_that_cannot_be_is_refused(wrong):
    with pytest.raises(InputError):
        FactSet(**wrong)


def test_the_first_n_of_a_seeded_shuffle_are_taken_in_the_order_of_the_list():
    shuffled = KNOWN.copy()
    random.Random(5).shuffle(shuffled)
    expected = sorted(shuffled[:7], key=KNOWN.index)
    assert choose(FactSet(n=7, seed=5), KNOWN) == tuple(expected)
    assert choose(FactSet(n=None), KNOWN) == choose(FactSet(n=31), KNOWN) == tuple(KNOWN)
    capitals = choose(FactSet(relations=("capital",), n=None), KNOWN)
    assert [f.case_id for f in capitals] == list(range(0, 30, 3))
    assert choose(FactSet(relations=("nothing",)), KNOWN) == ()


def test_how_many_facts_are_meant_is_said():
    assert sentence(FactSet(n=None), KNOWN) == "All 30 facts of 2 relations."
    both = ("capital", "nothing")
    said = sentence(FactSet(relations=both, n=4, seed=9), KNOWN)
    assert said == "4 of 10 facts of 1 relation, drawn with seed 9. The list has no relation nothing."
    assert sentence(FactSet(), []) == "0 facts."


# -- lists in the store ------------------------------------------------------------------------------------------------


@pytest.fixture
def book(tmp_path) -> FactLists:
    return FactLists(tmp_path / "store.duckdb")


@pytest.fixture
def desk(book) -> FactListDesk:
    return FactListDesk(book)


ODD = [
    Fact("{} é \x00\u2028'; DROP TABLE fact_lists; --", "Zoë\U0001f600", " a", None, 3, None, None, True),
    Fact("The A is the A", "A", "b", "c", 2**62, "r", 2),
]


def test_a_list_comes_back_as_it_was_put(desk, book):
    assert desk.put(" mine ", ODD, note="typed") == "mine"
    assert desk.get("mine") == tuple(ODD)
    assert FactListDesk(book).get("mine") == tuple(ODD)  # not only from what this desk remembers
    found = desk.find("mine")
    assert (found.name, found.n, found.note) == ("mine", 2, "typed") and found.created == found.updated
    desk.put("empty", [])
    assert desk.names() == ["empty", "mine"] and desk.get("empty") == ()


def test_names_are_taken_changed_and_freed(desk):
    desk.put("one", KNOWN)
    desk.put("two", ODD)
    with pytest.raises(InputError, match="'one' already") as caught:
        desk.put("one", ODD)
    assert caught.value.field == "name" and desk.get("one") == tuple(KNOWN)
    with pytest.raises(InputError, match="'one' already"):
        desk.rename("two", "one")
    assert desk.rename("two", " zwei ") == "zwei" and desk.get("zwei") == tuple(ODD)
    desk.put("one", ODD, replace=True)
    assert desk.get("one") == tuple(ODD)
    desk.delete("one")
    for gone in (desk.get, desk.delete, lambda name: desk.rename(name, "x"), lambda name: desk.add(name, KNOWN)):
        with pytest.raises(InputError, match="no list of facts 'one'"):
            gone("one")
    assert desk.names() == ["zwei"]


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "x" * 121, "bundled", " Bundled "])
def test_names_that_are_none(desk, name):
    desk.put("there", [])
    for attempt in (lambda: desk.put(name, KNOWN), lambda: desk.rename("there", name)):
        with pytest.raises(InputError) as caught:
            attempt()
        assert caught.value.field == "name"
    assert desk.names() == ["there"]


@pytest.mark.parametrize(
    "facts, field",
    [
        ([fact(1), fact(1)], "facts"),
        ([replace(fact(1), subject=" ")], "subject"),
        ([replace(fact(1), true="")], "true"),
        ([replace(fact(1), prompt="")], "prompt"),
    ],
)
def test_facts_that_cannot_be_a_list(desk, facts, field):
    with pytest.raises(InputError) as caught:
        desk.put("mine", facts)
    assert caught.value.field == field and desk.names() == []


def test_facts_are_added_edited_and_removed(desk):
    desk.put("mine", [fact(1), fact(4)])
    other = replace(fact(1), subject="another")
    added = desk.add("mine", [replace(fact(4), case_id=77), other, fact(9), other])
    assert added == (replace(other, case_id=10), fact(9))  # the first is there already, the last was just put there
    assert desk.get("mine") == (fact(1), fact(4), *added)
    desk.edit("mine", 4, replace(fact(8), true="new"))
    assert desk.get("mine")[1] == replace(fact(8), true="new", case_id=4)
    with pytest.raises(InputError, match="case_id 5"):
        desk.edit("mine", 5, fact(5))
    assert desk.remove("mine", [1, 9, 1000]) == 2
    assert [f.case_id for f in desk.get("mine")] == [4, 10]
    assert desk.find("mine").n == 2 and desk.find("mine").updated > desk.find("mine").created


def test_changes_at_the_same_time_are_all_kept(desk):
    desk.put("mine", [])
    threads = [
        threading.Thread(target=lambda n=n: [desk.add("mine", [fact(100 * n + i)]) for i in range(5)]) for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {f.case_id for f in desk.get("mine")} == {100 * n + i for n in range(4) for i in range(5)}


def test_lists_outlive_clearing_eviction_and_migration(tmp_path):
    path = tmp_path / "store.duckdb"
    connection = duckdb.connect(str(path))
    assert 6 not in migrate(connection.cursor(), upto=5)
    connection.close()
    desk = FactListDesk(FactLists(path))
    assert desk.names() == []
    desk.put("mine", KNOWN)
    with Store.open(path, limit_bytes=1) as store:
        store.put_verdict("k", "m", {"a": 1})
        store.clear()
        assert desk.get("mine") == tuple(KNOWN) and store.contents_bytes() == 0


def test_without_a_store_there_are_none_and_it_is_said():
    desk = FactListDesk(None, store_error="The disk is gone.")
    assert desk.names() == [] and desk.find("mine") is None
    with pytest.raises(StoreError, match="The disk is gone"):
        desk.put("mine", KNOWN)


KILLED = """
import sys
sys.path.insert(0, sys.argv[2])
from cache.fact_lists import FactLists
book = FactLists(sys.argv[1])
for i in range(10_000):
    book.put(f"list {i}", bytes([i % 256]) * 100_000, n=i)
    print(i, flush=True)
"""


def test_a_killed_process_leaves_whole_lists_only(book, request):
    command = [sys.executable, "-c", KILLED, str(book.path), str(request.config.rootpath)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        while int(last := writer.stdout.readline()) < 3:
            pass
        writer.kill()
        acknowledged = int((writer.stdout.read().split() or [last])[-1])
    found = {record.name: record for record in book.all()}
    assert {f"list {i}" for i in range(acknowledged + 1)} <= set(found) and len(found) <= acknowledged + 2
    for record in found.values():
        assert book.get(record.name)[1] == bytes([record.n % 256]) * 100_000
