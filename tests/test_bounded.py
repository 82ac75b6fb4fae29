"""A memory with a bound: by number, by the size of the tables, and what was asked for last stays."""

from __future__ import annotations

import threading

import pandas as pd
from fake_results import fake_result

from core.bounded import Bounded, values_in
from core.charts import layer_token


def test_what_was_asked_for_longest_ago_goes_first():
    memory = Bounded(most=3)
    for name in "abc":
        assert memory.keep(name, name.upper(), 0) == name.upper()
    assert memory.get("a") == "A"
    memory.keep("d", "D", 0)
    assert [memory.get(name) for name in "abcd"] == ["A", None, "C", "D"]
    assert memory.keep("a", "another", 0) == "A"
    memory.clear()
    assert len(memory) == 0 and memory.get("a") is None


def test_what_is_dropped_no_longer_counts():
    memory = Bounded(most=100, values=10)
    for name in "abc":
        memory.keep(name, name, 3)
    memory.drop(lambda thing: thing in "ac")
    assert [name for name in "abc" if name in memory] == ["b"]
    memory.keep("d", "d", 7)
    assert len(memory) == 2, "3 and 7 fit"


def test_large_things_push_out_more_and_the_last_one_always_stays():
    memory = Bounded(most=100, values=10)
    for name in "abcd":
        memory.keep(name, name, 3)
    assert [name for name in "abcd" if name in memory] == ["b", "c", "d"]
    memory.keep("large", "large", 1000)
    assert len(memory) == 1 and memory.get("large") == "large"
    for name in "ab":
        memory.keep(name, name, 5)
    assert len(memory) == 2, "what went no longer counts"


def test_the_size_is_that_of_the_tables():
    table = pd.DataFrame({"a": [1, 2, 3], "b": ["x", "y", "z"]})
    assert values_in(table) == 6
    assert values_in({"t": table, "u": table, "n": 7}) == 12
    assert values_in("text") == values_in(None) == values_in(str) == 0
    result = fake_result()
    frames = (result.frame, result.routing, result.next_tokens, result.runs)
    assert values_in(result) == sum(len(frame) * len(frame.columns) for frame in frames)
    picture = layer_token(result)
    assert values_in(picture) == sum(len(content) // 32 for content in picture.data.values()) > 0


def test_many_threads_get_one_thing_for_one_key():
    memory, got, start = Bounded(most=4), [], threading.Barrier(8)

    def work(number: int) -> None:
        start.wait()
        for key in range(200):
            got.append((key, memory.keep(key % 3, (number, key), 1)))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len({thing for key, thing in got if key % 3 == rest}) == 1 for rest in range(3))
