"""The bundled fact list: shape, counts, and the promises about subjects, objects, foils and templates."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parent.parent / "demo"
WORD = re.compile(r"[^\W_]+")
RELATIONS = set(
    """country_capital country_continent country_currency country_language country_code country_dial city_country
    city_continent element_symbol element_number person_job person_country person_birthplace book_author art_artist
    art_city music_composer landmark_city landmark_country company_country company_product state_capital animal_class
    animal_young feature_continent country_demonym state_code dish_country deity_culture""".split()
)


def _load(name: str):
    """A module of demo/, without leaving demo/ on the path."""
    sys.path.insert(0, str(DEMO))
    try:
        spec = importlib.util.spec_from_file_location(f"demo_{name}", DEMO / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(DEMO))


def _source_rows(name: str) -> list[list[str]]:
    lines = (DEMO / "sources" / f"{name}.psv").read_text(encoding="utf-8").splitlines()
    return [line.split("|") for line in lines if line and not line.startswith("#")]


def _key(fact: dict) -> tuple[str, str]:
    return fact["requested_rewrite"]["relation_id"], fact["requested_rewrite"]["subject"]


@pytest.fixture(scope="module")
def facts() -> list[dict]:
    return [json.loads(line) for line in (DEMO / "facts.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def templates() -> dict:
    return _load("templates").TEMPLATES


def test_record_shape_and_case_ids(facts):
    for number, fact in enumerate(facts):
        assert set(fact) == {"case_id", "requested_rewrite", "paraphrase_prompts", "source"}
        rewrite = fact["requested_rewrite"]
        assert set(rewrite) == {"prompt", "subject", "target_true", "target_new", "relation_id"}
        assert fact["case_id"] == number
        assert fact["source"] and len(set(fact["paraphrase_prompts"])) >= 2
        for text in (rewrite["subject"], rewrite["target_true"]["str"], rewrite["target_new"]["str"]):
            assert text and text == text.strip()
    keys = [_key(fact) for fact in facts]
    assert keys == sorted(keys) and len(set(keys)) == len(keys)


def test_counts(facts):
    counts = Counter(fact["requested_rewrite"]["relation_id"] for fact in facts)
    assert len(facts) >= 4000
    assert set(counts) == RELATIONS and min(counts.values()) >= 40


def test_objects_are_single_different_words(facts):
    for fact in facts:
        rewrite = fact["requested_rewrite"]
        true, foil = rewrite["target_true"]["str"], rewrite["target_new"]["str"]
        assert WORD.fullmatch(true) and WORD.fullmatch(foil)
        assert true.casefold() not in foil.casefold() and foil.casefold() not in true.casefold()


def test_foil_is_an_object_of_the_relation_but_not_of_the_subject(facts):
    objects, true_of = defaultdict(set), defaultdict(set)
    for fact in facts:
        rewrite = fact["requested_rewrite"]
        objects[rewrite["relation_id"]].add(rewrite["target_true"]["str"])
        true_of[rewrite["relation_id"], rewrite["subject"]].add(rewrite["target_true"]["str"])
    also_true = defaultdict(set)
    for relation, subject, names in _source_rows("also_true") + _source_rows("refused_foils"):
        also_true[relation, subject] |= {name.strip() for name in names.split(",")}
    for fact in facts:
        rewrite = fact["requested_rewrite"]
        key, foil = (rewrite["relation_id"], rewrite["subject"]), rewrite["target_new"]["str"]
        assert foil in objects[rewrite["relation_id"]]
        assert foil not in true_of[key] | also_true[key] | also_true[key[0], "*"]


def test_prompts_hold_the_subject_once_and_never_give_the_object_away(facts):
    for fact in facts:
        rewrite = fact["requested_rewrite"]
        subject, true, foil = rewrite["subject"], rewrite["target_true"]["str"], rewrite["target_new"]["str"]
        assert true.casefold() not in {word.casefold() for word in WORD.findall(subject)}
        assert rewrite["prompt"].count("{}") == 1
        held_out = rewrite["prompt"].replace("{}", subject)
        for prompt in [held_out, *fact["paraphrase_prompts"]]:
            assert prompt.count(subject) == 1, prompt
            assert true not in WORD.findall(prompt), prompt
        assert foil.casefold() not in {word.casefold() for word in WORD.findall(held_out)}


def test_templates(facts, templates):
    assert set(templates) == RELATIONS
    used = defaultdict(set)
    for fact in facts:
        rewrite = fact["requested_rewrite"]
        own = templates[rewrite["relation_id"]]
        assert not set(own.trained) & set(own.unseen)
        assert rewrite["prompt"] in own.trained
        assert set(fact["paraphrase_prompts"]) <= {t.replace("{}", rewrite["subject"]) for t in own.unseen}
        used[rewrite["relation_id"]].add(rewrite["prompt"])
    for relation, held_out in used.items():  # the seeded choice spreads over the trained templates
        assert len(held_out) >= 0.75 * len(templates[relation].trained)


def test_list_is_what_the_builder_makes(tmp_path):
    _load("build_facts").write(tmp_path / "facts.jsonl")
    assert (tmp_path / "facts.jsonl").read_bytes() == (DEMO / "facts.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("relation", "subject", "obj", "complaint"),
    [
        ("country_capital", "Mexico", "Mexico City", "not one word"),
        ("city_country", "Guatemala City", "Guatemala", "gives away"),
        ("book_author", "Emma", "Austen", "listed twice"),
    ],
)
def test_builder_refuses_bad_sources(relation, subject, obj, complaint):
    builder = _load("build_facts")
    table = builder.FactTable()
    table.facts["book_author"]["Emma"] = ("Austen", "test")
    with pytest.raises(builder.SourceError, match=complaint):
        table.add(relation, subject, obj, "test")


def test_review_takes_out_what_it_names_and_changes_nothing_else(facts):
    builder = _load("build_facts")
    before = {_key(fact): fact for fact in builder.build(reviewed=False)}
    after = {_key(fact): fact for fact in facts}
    withdrawn = {(relation, subject) for relation, subject, _ in _source_rows("withdrawn")}
    assert set(before) == set(after) | withdrawn and not set(after) & withdrawn
    refused, objects = defaultdict(set), defaultdict(set)
    for relation, subject, names in _source_rows("refused_foils"):
        refused[relation, subject] |= {name.strip() for name in names.split(",")}
    for (relation, _), fact in after.items():
        objects[relation].add(fact["requested_rewrite"]["target_true"]["str"])
    dropped = {
        (relation, subject.strip(), template)
        for relation, template, subjects in _source_rows("withdrawn_paraphrases")
        for subject in subjects.split(",")
    }
    for key, fact in after.items():
        old, new = before[key]["requested_rewrite"], fact["requested_rewrite"]
        assert (new["prompt"], new["target_true"]) == (old["prompt"], old["target_true"])
        foil = old["target_new"]["str"]
        is_out = foil not in objects[key[0]] or foil in refused[key] | refused[key[0], "*"]
        assert (new["target_new"]["str"] != foil) == is_out
        assert fact["paraphrase_prompts"] == [
            template.replace("{}", key[1])
            for template in builder.TEMPLATES[key[0]].unseen
            if template.replace("{}", key[1]) in before[key]["paraphrase_prompts"]
            and not {(*key, template), (key[0], "*", template)} & dropped
        ]


@pytest.mark.parametrize(
    ("file", "row", "complaint"),
    [
        ("withdrawn", ["book_author", "Atlantis", "why"], "no fact"),
        ("withdrawn", ["book_author", "*", "why"], "or is no fact"),
        ("refused_foils", ["book_author", "Atlantis", "Austen"], "no fact"),
        ("withdrawn_paraphrases", ["book_author", "{} is", "Emma"], "no paraphrase"),
        ("withdrawn_paraphrases", ["book_author", "The writer of the book {} is", "Atlantis"], "no fact"),
    ],
)
def test_builder_refuses_bad_reviews(monkeypatch, file, row, complaint):
    builder = _load("build_facts")
    table = builder.FactTable()
    table.facts["book_author"]["Emma"] = ("Austen", "test")
    monkeypatch.setattr(builder, "read_psv", lambda name: iter([row] if name == file else []))
    with pytest.raises(builder.SourceError, match=complaint):
        builder.read_review(table)


def test_foil_refused_for_every_subject_is_drawn_again():
    builder = _load("build_facts")
    table = builder.FactTable()
    for subject, obj in {"Emma": "Austen", "Nana": "Zola", "Kim": "Kipling", "Ulysses": "Joyce"}.items():
        table.add("book_author", subject, obj, "test")
    first = builder.pick_foil("book_author", "Emma", "", table, [])
    table.refused["book_author", "*"] = {first}
    second = builder.pick_foil("book_author", "Emma", "", table, [])
    (third,) = {"Zola", "Kipling", "Joyce"} - {first, second}
    table.withdrawn |= {
        ("book_author", s) for s in table.facts["book_author"] if table.facts["book_author"][s][0] == second
    }
    assert builder.pick_foil("book_author", "Emma", "", table, []) == third
    table.refused["book_author", "Emma"] = {third}
    with pytest.raises(builder.SourceError, match="no foil"):
        builder.pick_foil("book_author", "Emma", "", table, [])


def test_builder_checks_cities_against_geonames():
    builder = _load("build_facts")
    builder.check_city("Lyon", "FR", 500_000, {"US": 3_000})
    with pytest.raises(builder.SourceError, match="GeoNames has no"):
        builder.check_city("Atlantis", "GR", 0, {})
    with pytest.raises(builder.SourceError, match="is also a city"):
        builder.check_city("Valencia", "ES", 800_000, {"VE": 1_300_000})
