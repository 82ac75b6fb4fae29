"""Input that nobody meant: whatever stands in a link, a field or a file, what reads it answers with a value or with a
message that names the field, and what it writes is read back as it is."""

from __future__ import annotations

import dataclasses
from functools import partial

import nasty
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from core import expert_link, library_link, links, routing_link
from core.averages import link as averages_link
from core.compare import link as compare_link
from core.errors import InputError
from core.requests import Fact
from core.study import link as study_link

FRANCE = Fact("The capital of {} is", "France", "Paris", "Rome", case_id=17, relation="capital")
BUNDLED = {"bundled": {17: FRANCE}.get, "default": FRANCE}
MODEL = ("model", "revision", "dtype", "device", "quantisation", "placement", "noise", "draws", "seed", "corruption")
SET = ("facts", "relations", "n", "facts_seed")


READERS = {
    "trace": (partial(links.from_query, **BUNDLED), links.Link.to_query, links.NAMES),
    "expert": (
        expert_link.from_query, expert_link.to_query,
        (*links.NAMES, *SET, "place", "written", "measure", "neuron", "factor", "where"),
    ),
    "routing": (
        routing_link.from_query, routing_link.to_query,
        tuple(
            f"{prefix}{name}" for prefix in ("", "b_")
            for name in (
                *MODEL, *SET, "set", "form", "prompts", "prompts_key", "show", "run", "where", "layer", "expert",
                "prompt",
            )
        ),
    ),
    "averages": (averages_link.from_query, averages_link.to_query, (*links.NAMES, *SET, "min_drop", "role")),
    "compare": (
        partial(compare_link.from_query, **BUNDLED), compare_link.to_query,
        ("edit", "same_model", *(f"{side}.{name}" for side in "ab" for name in links.NAMES)),
    ),
    "study": (
        study_link.from_query, study_link.to_query,
        ("study", "show", "layer", "expert", "relation", "split", "fact"),
    ),
    "library": (
        library_link.from_query, library_link.to_query,
        (*MODEL, "show", "facts", "relation", "search", "outcome", "of", "measure", "min_clean_contrast", "min_drop"),
    ),
}  # fmt: skip
"""Of every page: what reads its link, what writes it, the parameters it may have."""

CHOICES = (
    "float32", "cpu", "int8", "disk", "off", "paper", "rescue", "residual", "minimal", "layer", "knockout", "steering",
    "prompts", "facts", "corrupt", "compare", "subject", "validation", "experts", "usable", "bundled",
)  # fmt: skip
SAID = st.one_of(nasty.texts, st.sampled_from(CHOICES))


@nasty.few
@given(data=st.data())
@pytest.mark.parametrize("page", READERS)
def test_no_link_raises_and_what_was_read_is_written_and_read_again(page, data):
    read, write, names = READERS[page]
    params = data.draw(st.dictionaries(st.sampled_from(names), SAID, max_size=8))
    stable(read, write, params)


@pytest.mark.parametrize("page", READERS)
def test_every_parameter_alone_may_be_anything(page):
    read, write, names = READERS[page]
    for name in names:
        for value in nasty.SAMPLES:
            stable(read, write, ({"study": "mine"} if page == "study" else {}) | {name: value})


def stable(read, write, params: dict[str, str]) -> None:
    first = read(params)
    for problem in first.problems:
        assert len(problem) < 400
    query = write(first)
    again = read(query)
    assert not again.problems and write(again) == query
    if "prompts_key" not in query and "b_prompts_key" not in query:  # there the store has the prompts
        assert again == dataclasses.replace(first, problems=()), (params, query)


def test_letters_that_join_or_direct_others_stay_in_a_link():
    fact = Fact("می\u200cخواهم {}", "👩\u200d👧 e\u0301", "\u202bאב\u202c", "\u00a0\u3000x")
    query = links.to_query(links.TraceRequest(fact=fact), links.View(), bundled=False)
    read = links.from_query(query, **BUNDLED)
    assert read.request.fact == fact and not read.problems


def test_what_is_no_text_is_left_out_of_a_link_and_named():
    read = links.from_query({"prompt": "a\x00{}\x9b", "subject": "s", "true": "\x07"}, **BUNDLED)
    assert read.request.fact == FRANCE
    assert [p for p in read.problems if "prompt has characters" in p] and "no true" in read.problems[-1]


@nasty.few
@given(st.tuples(nasty.texts, st.sampled_from(["a.model=demo", "a.noise=2", "b.seed=x"]), nasty.texts).map("".join))
@example("http://[?a.model=demo")
@example("http://\u2100/?a.model=demo")
def test_the_address_of_a_comparison_is_read_or_refused(text):
    try:
        pair = compare_link.from_text(text, **BUNDLED)
    except InputError as error:
        assert error.field == "link" and len(str(error)) < 5000
    else:
        assert not pair.problems
