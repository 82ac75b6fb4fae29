"""The Routing page's link, lists of plain prompts, and other forms of facts: there and back, and what cannot be."""

from __future__ import annotations

import pytest

from cache import Store
from core import facts, prompt_lists, prompt_store
from core.errors import InputError
from core.fact_sets import FactSet
from core.prompt_forms import CONTEXT, DIRECT, FORMS, PARAPHRASED, in_context, in_form, paraphrased
from core.prompt_lists import read_lines
from core.prompts import subject_span
from core.requests import Fact, ModelSpec
from core.routing_link import PROMPTS, PromptSet, RoutingView, check, from_query, to_query
from core.workbench import Workbench

LONG = tuple(f"This is the prompt number {i}, and it goes on for a while" for i in range(60))

VIEWS = [
    RoutingView(),
    RoutingView(
        model=ModelSpec("org/name", revision="r", dtype="bfloat16"), noise=2.5, draws=3, seed=9, special_tokens="off",
        corruption="replace", section="relations", run="corrupt", position_class="last subject", layer=4, expert=7,
        a=PromptSet(facts=FactSet(relations=("a|b", "c d"), n=None), form=PARAPHRASED), fact=3,
    ),
    RoutingView(section="compare", b=PromptSet(), run="change", position_class="all"),
    RoutingView(
        a=PromptSet(source=PROMPTS, prompts=("Die Hauptstadt von Frankreich ist", "=1+2 & \"more\" <b>")),
        b=PromptSet(facts=FactSet(n=5, seed=3), form=CONTEXT),
    ),
    RoutingView(a=PromptSet(source=PROMPTS), b=PromptSet(source=PROMPTS, prompts_key="0" * 32)),
]  # fmt: skip


@pytest.mark.parametrize("view", VIEWS)
def test_a_link_brings_back_what_was_shown(view):
    params = to_query(view)
    assert from_query(params) == view
    assert all(isinstance(value, str) for value in params.values())


def test_long_lists_are_named_by_their_content(tmp_path):
    params = to_query(RoutingView(a=PromptSet(source=PROMPTS, prompts=LONG)))
    assert params["prompts_key"] == prompt_lists.key_of(LONG) and "prompts" not in params
    back = from_query(params).a
    assert back.prompts == () and back.prompts_key == params["prompts_key"]
    with Store.open(tmp_path / "store.duckdb") as store:
        bench = Workbench(store)
        assert bench.prompts(back.prompts_key) is None
        assert bench.keep_prompts(LONG) == bench.keep_prompts(LONG) == back.prompts_key
        assert bench.prompts(back.prompts_key) == LONG
    with Store.open(tmp_path / "store.duckdb") as store:
        assert prompt_store.find(store, back.prompts_key) == LONG, "another process finds them"
        store.clear(prompt_store.LABEL)
        assert prompt_store.find(store, back.prompts_key) is None
    nowhere = Workbench(None)
    assert nowhere.prompts(nowhere.keep_prompts(LONG)) == LONG


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"show": "everything"}, "show"),
        ({"run": "noise"}, "run must be one of clean, corrupt, change"),
        ({"where": "subject"}, "where must be one of first subject"),
        ({"layer": "-1"}, "layer must be a whole number"),
        ({"expert": "3"}, "names an expert but no layer"),
        ({"noise": "0"}, "noise must be"),
        ({"prompts_key": "../../etc"}, "which is no key of a list of prompts"),
        ({"prompts": "The {} is"}, "line 1 has a {} in it"),
        ({"b_set": "facts", "b_form": "sung"}, "The second set: The link says form=sung"),
        ({"n": "0"}, "n must be a whole number"),
    ],
)
def test_what_a_link_cannot_say_is_named_and_replaced(params, words):
    view = from_query(params)
    assert any(words in problem for problem in view.problems), view.problems
    assert from_query(to_query(view)).problems == ()


def test_layers_and_experts_that_are_not_there_are_named():
    view = RoutingView(layer=3, expert=4)
    assert check(view, layers=[1, 3], n_experts=8) == (view, [])
    view, (problem,) = check(view, layers=[0, 1], n_experts=8)
    assert (view.layer, view.expert) == (None, None) and "Layer 3 has no experts" in problem
    view, (problem,) = check(RoutingView(layer=1, expert=8), layers=[0, 1], n_experts=8)
    assert (view.layer, view.expert) == (1, None) and "There is no expert 8" in problem


def test_prompts_are_the_lines_of_a_text():
    text = "  The capital of France is \n\n\tDie   Hauptstadt\r\nдва\rx =\t1\n \ufeff \n\ufeffa\u200bb\u2028c\ufeffd"
    lines = ("The capital of France is", "Die   Hauptstadt", "два", "x =\t1", "a\u200bb\u2028c\ufeffd")
    assert read_lines(text) == lines, "what stands between two words is part of the prompt: its tokens are counted"
    assert read_lines(text.encode("utf-8-sig"), "a.txt") == read_lines(text.encode("utf-16")) == lines
    view = RoutingView(a=PromptSet(source=PROMPTS, prompts=lines))
    assert from_query(to_query(view)) == view


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "a.txt holds no prompt"),
        (b" \n\n", "holds no prompt"),
        (b"one\ntwo \xff\xff", r"is not a text in UTF-8 \(line 2\)"),
        (b"one\nThe capital of {} is", "line 2 has a {} in it"),
        (b"\x89PNG\x01\x02", "UTF-8"),
        (b"one\x01two", "line 1 has characters that are no text"),
        ("one\n\none\x0ctwo".encode("utf-16"), "line 3 has characters that are no text"),
        ("one\x85two".encode(), "line 1 has characters that are no text"),
        (b"ok\n" + b"a" * 4001, "line 2 has 4,001 characters"),
        (b"a\n" * 2001, "has 2,001 prompts. At most 2,000"),
        ((b"a" * 3000 + b"\n") * 70, "has 210,000 characters"),
    ],
)
def test_what_is_no_list_of_prompts_is_refused_with_the_line(content, words):
    with pytest.raises(InputError, match=words):
        read_lines(content, "a.txt")


def test_other_forms_of_a_fact_are_about_the_same_fact():
    known = facts.bundled()[:300]
    for form in FORMS:
        made = in_form(known, form)
        assert len(made) > 250
        by_id = {fact.case_id: fact for fact in known}
        for fact in made:
            old = by_id[fact.case_id]
            assert (fact.subject, fact.true, fact.foil, fact.relation) == (
                old.subject, old.true, old.foil, old.relation,
            )  # fmt: skip
            start, end = subject_span(fact)
            assert fact.text[start:end] == old.subject.strip()
            assert (fact == old) == (form == DIRECT)
    france = Fact("The capital of {} is", "France", "Paris", "Rome")
    stated = in_context(france)
    assert stated.text == "The capital of France is Paris. The capital of France is"
    assert subject_span(stated) == (47, 53), "the question's subject, not the statement's"
    whole = Fact("France and Spain: the capital of France is", "France", "Paris", "Rome", occurrence=2)
    text = in_context(whole).text
    assert text == f"{whole.text} Paris. {whole.text}"
    assert subject_span(in_context(whole))[0] == text.rindex("France")
    assert in_context(Fact("The capital is", "France", "Paris")) is None
    assert paraphrased(france) is None, "only bundled facts have paraphrases"
    assert in_form([france], PARAPHRASED) == ()
