"""Tokenisation of facts, on the kinds of tokenizers that models have, against offset-free oracles."""

from __future__ import annotations

import json
import random
import unicodedata

import pytest
import sentencepiece
from tokenizers_for_tests import CORPUS, KINDS, MIXTRAL_MODEL, byte_level, subject_by_bytes, tokenizer, with_template
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from core.catalog import DEMO_FOLDER
from core.errors import InputError
from core.facts import bundled
from core.prompts import encode, object_token, piece, prepare, with_foil
from core.requests import Fact
from core.typed import live

FRANCE = Fact("The capital of {} is", "France", "Paris", "Rome")


def fact(prompt="The capital of {} is", subject="France", true="Paris", foil="Rome", **more) -> Fact:
    return Fact(prompt, subject, true, foil, **more)


def refused(tok, a_fact, **options) -> InputError:
    with pytest.raises(InputError) as caught:
        prepare(tok, a_fact, **options)
    assert caught.value.what and caught.value.exit_code == 2
    return caught.value


# -- what the model gets -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_input_ids_are_the_tokenizers_own(kind):
    tok = tokenizer(kind)
    assert list(prepare(tok, FRANCE).input_ids) == tok("The capital of France is")["input_ids"]


@pytest.mark.parametrize("kind", ["sentencepiece", "metaspace"])
def test_mixtral_tokens_are_sentencepieces_own(kind):
    own = sentencepiece.SentencePieceProcessor(model_file=str(MIXTRAL_MODEL))
    for text in [*CORPUS, "Zürich 😀 ist größer", "北京是中国的首都", "a b\nc"]:
        assert list(encode(tokenizer(kind), text)[0]) == [own.bos_id(), *own.encode(text)]


def test_bos_counts_as_a_position_and_has_no_characters():
    prepared = prepare(tokenizer("sentencepiece"), FRANCE)
    assert prepared.tokens == ("<s>", " The", " capital", " of", " France", " is")
    assert prepared.spans[0] == (0, 0)
    assert prepared.subject_positions == (4,)


def test_special_tokens_off_and_on():
    tok = tokenizer("sentencepiece")
    assert prepare(tok, FRANCE, special_tokens="off").input_ids == prepare(tok, FRANCE).input_ids[1:]
    assert prepare(tok, FRANCE, special_tokens="off").subject_positions == (3,)
    assert prepare(tok, FRANCE, special_tokens="on") == prepare(tok, FRANCE, special_tokens="auto")


def test_on_puts_a_bos_in_front_where_the_tokenizer_has_one_but_adds_none():
    tok = byte_level(add_prefix_space=False, bos_token="<|endoftext|>")
    plain, forced = prepare(tok, FRANCE), prepare(tok, FRANCE, special_tokens="on")
    assert forced.input_ids == (tok.bos_token_id, *plain.input_ids)
    assert forced.subject_positions == tuple(p + 1 for p in plain.subject_positions)
    assert (forced.true_id, forced.foil_id) == (plain.true_id, plain.foil_id)


def test_on_without_any_bos_is_refused():
    assert refused(tokenizer("prefix_space"), FRANCE, special_tokens="on").field == "special_tokens"


def test_trailing_special_tokens_are_dropped_typed_ones_are_kept():
    base = byte_level(add_prefix_space=False)
    tok = with_template(base, "<s> $A </s>", bos_token="<s>", eos_token="</s>")
    prepared = prepare(tok, FRANCE)
    assert tok("The capital of France is")["input_ids"][-1] == tok.eos_token_id
    assert prepared.tokens[0] == "<s>" and prepared.tokens[-1] == " is"
    only_eos = with_template(base, "$A </s>", bos_token="<s>", eos_token="</s>")
    assert prepare(only_eos, FRANCE).tokens[-1] == " is"
    assert prepare(only_eos, FRANCE, special_tokens="on").tokens[0] == "<s>"
    ids, _, special = encode(tok, "France</s>")
    assert ids[-1] == tok.eos_token_id and not special[-1]


def test_prompt_longer_than_the_context():
    tok = tokenizer("no_prefix_space")
    n = len(prepare(tok, FRANCE).input_ids)
    assert prepare(tok, FRANCE, max_length=n).input_ids
    error = refused(tok, FRANCE, max_length=n - 1)
    assert error.field == "prompt" and str(n) in error.what and str(n - 1) in error.what


def test_a_tokenizer_without_offsets_is_refused():
    assert "offsets" in refused(ByT5Tokenizer(), FRANCE).what

    class Unwilling:
        is_fast = True

        def __call__(self, *_, **__):
            raise NotImplementedError("return_offsets_mapping is not available")

    assert "offsets" in refused(Unwilling(), FRANCE).what


# -- the subject ---------------------------------------------------------------------------------------------------

SUBJECTS = [
    ("The capital of {} is", "France"),
    ("{} is a country. Its capital is", "France"),
    ("{}", "Marie Curie"),
    ("The mother tongue of {}", "Marie Curie"),
    ("The city of {} lies in", "New  York"),
    ("The {}ish language is spoken in", "Turk"),
    ("({}) is", "Zürich"),
    ("The mayor of {}'s name is", "São Paulo"),
    ("I like {} because it is", "😀"),
    ("{} is", "😀"),
    ("The family 👩‍👩‍👧 of {} is", "👩‍👩‍👧‍👦 Smith"),
    ("The city of {} is", "I\u0307stanbul cafe\u0301"),
    ("Le {} est", "cafe\u0301"),
    ("عاصمة {} هي", "فرنسا"),
    ("בירת {} היא", "צרפת"),
    ("{}的首都是", "法国"),
    ("中国的首都{}", "北京"),
    ("Line one\nline two of {}\tis", "Ångström's\tlaw"),
    ("𝔘𝔫𝔦𝔠𝔬𝔡𝔢 {} is", "𝒶𝒷"),
    ("{} is", "x"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("prompt", "subject"), SUBJECTS)
def test_subject_positions_hold_the_subjects_bytes(kind, prompt, subject):
    tok = tokenizer(kind)
    prepared = prepare(tok, fact(prompt, subject), first_token=True)
    start = prompt.index("{}")
    expected = subject_by_bytes(tok, list(prepared.input_ids), prepared.fact.text, start, start + len(subject))
    assert list(prepared.subject_positions) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_subject_positions_of_random_texts(kind):
    tok = tokenizer(kind)
    rng = random.Random(5)
    alphabet = ["a", "New", " York", "é", "ß", "😀", "中", "ع", "-", "'", "9", " ", "e\u0301", "France", " is"]
    checked = 0
    for _ in range(300):
        subject = "".join(rng.choices(alphabet, k=rng.randint(1, 5))).strip()
        before = "".join(rng.choices(alphabet, k=rng.randint(0, 4)))
        after = "".join(rng.choices(alphabet, k=rng.randint(0, 4))).rstrip() + "."
        text = before + subject + after
        # a mark that the normalizer joins to the character before it has no byte of its own
        joined = any(unicodedata.combining(part[:1] or "a") for part in (subject, after))
        if not subject or joined or before != before.lstrip():
            continue
        prepared = prepare(tok, fact(f"{before}{{}}{after}", subject), first_token=True)
        expected = subject_by_bytes(tok, list(prepared.input_ids), text, len(before), len(before) + len(subject))
        assert list(prepared.subject_positions) == expected, (before, subject, after)
        checked += 1
    assert checked > 200


@pytest.mark.parametrize("trim", [True, False])
def test_offsets_with_and_without_the_leading_space_give_the_same_positions(trim):
    tok = byte_level(add_prefix_space=False, trim_offsets=trim)
    spans = prepare(tok, FRANCE).spans
    assert ("The capital of France is"[slice(*spans[3])] == "France") is trim
    for prompt, subject in SUBJECTS:
        plain = prepare(byte_level(add_prefix_space=False), fact(prompt, subject), first_token=True)
        assert prepare(tok, fact(prompt, subject), first_token=True).subject_positions == plain.subject_positions


def test_the_dummy_prefix_is_no_subject_token():
    prepared = prepare(tokenizer("sentencepiece"), fact("{}的首都是", "北京"), first_token=True)
    assert prepared.tokens[:4] == ("<s>", " ", "北", "京")
    assert prepared.subject_positions == (2, 3)


def test_a_character_over_several_tokens_is_the_subject_with_all_of_them():
    prepared = prepare(tokenizer("no_prefix_space"), fact("I like {} because", "😀"))
    assert [prepared.tokens[p] for p in prepared.subject_positions] == ["<0xF0>", "<0x9F>", "<0x98>", "<0x80>"]


def test_white_space_round_the_subject_does_not_count():
    tok = tokenizer("no_prefix_space")
    assert prepare(tok, fact("The capital of{} is", " France")).subject_positions == (3,)
    assert prepare(tok, fact("The capital of France is", " France ")).subject_positions == (3,)


def test_subject_not_in_the_prompt():
    error = refused(tokenizer("no_prefix_space"), fact("The capital of Spain is"))
    assert error.field == "subject" and "'France'" in error.what and "{}" in error.next
    assert refused(tokenizer("no_prefix_space"), fact("The capital of france is")).field == "subject"


def test_subject_occurring_twice_lists_the_occurrences():
    twice = "Is France big? The capital of France is"
    error = refused(tokenizer("no_prefix_space"), fact(twice))
    assert error.field == "occurrence"
    assert '1: "Is [France] big? ' in error.what and '2: "…' in error.what and "of [France] is" in error.what
    assert "--occurrence" in error.next


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [1, 2])
def test_occurrence_chooses(kind, number):
    twice = "Is France big? The capital of France is"
    tok = tokenizer(kind)
    prepared = prepare(tok, fact(twice, occurrence=number))
    start = [3, 30][number - 1]
    assert twice[start : start + 6] == "France"
    assert list(prepared.subject_positions) == subject_by_bytes(tok, list(prepared.input_ids), twice, start, start + 6)


@pytest.mark.parametrize("number", [0, 3, -1])
def test_occurrence_that_is_not_there(number):
    assert refused(tokenizer("no_prefix_space"), fact("France, France", occurrence=number)).field == "occurrence"


def test_a_template_needs_no_occurrence():
    tok = tokenizer("no_prefix_space")
    prepared = prepare(tok, fact("France? The capital of {} is"))
    assert "".join(prepared.tokens[p] for p in prepared.subject_positions) == " France"
    assert prepared.subject_positions[0] > 2


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": " \n"}, "prompt"),
        ({"prompt": "{} and {}"}, "prompt"),
        ({"prompt": "The capital of {} is "}, "prompt"),
        ({"prompt": "The capital of {} is\n"}, "prompt"),
        ({"prompt": "bad \ud83d {} is"}, "prompt"),
        ({"subject": ""}, "subject"),
        ({"subject": "  "}, "subject"),
        ({"true": ""}, "true"),
        ({"true": "\ud800"}, "true"),
        ({"foil": " "}, "foil"),
        ({"foil": None}, "foil"),
        ({"foil": "Paris"}, "foil"),
        ({"true": " Paris", "foil": "Paris "}, "foil"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_incomplete_facts(kind, changed, field):
    values = {"prompt": "The capital of {} is", "subject": "France", "true": "Paris", "foil": "Rome"} | changed
    error = refused(tokenizer(kind), Fact(**values), first_token=True)
    assert error.field == field and error.next


def test_a_missing_foil_offers_the_automatic_one():
    assert "--foil auto" in refused(tokenizer("no_prefix_space"), fact(foil=None)).next


def test_every_bundled_fact_with_the_demo_models_own_tokenizer():
    tok = PreTrainedTokenizerFast.from_pretrained(DEMO_FOLDER)
    listed = bundled()
    assert len(listed) >= 4000
    for one in listed:
        prepared = prepare(tok, one)
        start = one.prompt.index("{}")
        expected = subject_by_bytes(tok, list(prepared.input_ids), one.text, start, start + len(one.subject))
        assert list(prepared.subject_positions) == expected
        assert (prepared.true_token, prepared.foil_token) == (f" {one.true}", f" {one.foil}")
        assert prepared.true_id == prepare(tok, one, object_tokens="paper").true_id


# -- objects -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("special", ["auto", "off"])
def test_space_rule_is_the_continuation(kind, special):
    tok = tokenizer(kind)
    prepared = prepare(tok, FRANCE, special_tokens=special)
    flag = special != "off"
    for obj, token_id in (("Paris", prepared.true_id), ("Rome", prepared.foil_id)):
        longer = tok(f"The capital of France is {obj}", add_special_tokens=flag)["input_ids"]
        assert longer == [*prepared.input_ids, token_id]
    assert (prepared.true_token, prepared.foil_token) == (" Paris", " Rome")


@pytest.mark.parametrize("kind", KINDS)
def test_paper_rule_is_the_bare_object(kind):
    tok = tokenizer(kind)
    prepared = prepare(tok, FRANCE, object_tokens="paper")
    assert [prepared.true_id] == tok("Paris", add_special_tokens=False)["input_ids"]
    assert [prepared.foil_id] == tok("Rome", add_special_tokens=False)["input_ids"]
    same = prepared.true_id == prepare(tok, FRANCE).true_id
    assert same is (kind != "no_prefix_space")  # a dummy prefix makes the rules one (protocol.md)


def test_paper_rule_falls_back_to_the_space():
    tok = tokenizer("no_prefix_space")
    assert len(tok("French")["input_ids"]) > 1 and len(tok(" French")["input_ids"]) == 1
    chosen = object_token(tok, "Her mother tongue is", "French", object_tokens="paper")
    assert [chosen.token_id] == tok(" French")["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
def test_targets_are_stripped(kind):
    tok = tokenizer(kind)
    spaced = prepare(tok, fact(true=" Paris", foil=" Rome\n"))
    assert (spaced.true_id, spaced.foil_id) == (prepare(tok, FRANCE).true_id, prepare(tok, FRANCE).foil_id)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", ["space", "paper"])
def test_objects_of_several_tokens(kind, rule):
    tok = tokenizer(kind)
    error = refused(tok, fact(true="New York"), object_tokens=rule)
    before = len(tok("The capital of France is", add_special_tokens=False)["input_ids"])
    pieces = tok("The capital of France is New York", add_special_tokens=False)["input_ids"][before:]
    assert error.field == "true" and "--first-token" in error.next
    assert " + ".join(repr(piece(tok, i)) for i in pieces) in error.what
    prepared = prepare(tok, fact(true="New York"), object_tokens=rule, first_token=True)
    assert prepared.true_id == pieces[0] and prepared.true_token == " New"
    assert any("'New York'" in note and "' New'" in note for note in prepared.notes)
    assert refused(tok, fact(foil="New York"), object_tokens=rule).field == "foil"


def test_first_token_changes_nothing_for_single_tokens():
    tok = tokenizer("prefix_space")
    assert prepare(tok, FRANCE, first_token=True) == prepare(tok, FRANCE)
    assert prepare(tok, FRANCE).notes == ()


@pytest.mark.parametrize("kind", KINDS)
def test_true_and_foil_with_the_same_first_token(kind):
    error = refused(tokenizer(kind), fact(true="New York", foil="New Delhi"), first_token=True)
    assert error.field == "foil" and "' New'" in error.what


def test_the_same_object_in_two_unicode_forms_shares_its_token():
    tok = tokenizer("no_prefix_space")  # normalizes to NFC, as Qwen's
    assert len(tok(" caf\u00e9")["input_ids"]) == 1
    error = refused(tok, fact(true="caf\u00e9", foil="cafe\u0301"))
    assert error.field == "foil" and "share" in error.what


def test_a_first_piece_of_white_space_alone_is_no_stand_in():
    tok = tokenizer("sentencepiece")
    error = refused(tok, fact(true="京都"), first_token=True)
    assert error.field == "true" and "white space" in error.what
    assert "--first-token" not in error.next


def test_prompt_tokens_that_change_when_the_object_follows():
    tok = byte_level(add_prefix_space=False, use_regex=False)
    prompt = "The capital of {} is"
    own = tok("The capital of France is")["input_ids"]
    assert tok("The capital of France is Paris")["input_ids"][: len(own)] != own
    error = refused(tok, fact(prompt))
    assert error.field == "prompt" and "change" in error.what


def test_an_object_outside_the_vocabulary():
    base = tokenizer("sentencepiece")
    description = json.loads(base.backend_tokenizer.to_str())
    description["model"] |= {"byte_fallback": False, "unk_token": "<unk>"}
    raw = type(base.backend_tokenizer).from_str(json.dumps(description))
    tok = type(base)(tokenizer_object=raw, bos_token="<s>", unk_token="<unk>")
    for rule in ("space", "paper"):
        error = refused(tok, fact(true="\U0001f9ff"), object_tokens=rule, first_token=True)
        assert error.field == "true" and "vocabulary" in error.what


def test_automatic_foil_is_filled_in_later():
    tok = tokenizer("no_prefix_space")
    waiting = prepare(tok, fact(foil=None, foil_auto=True))
    assert waiting.foil_id is None and waiting.foil_token == ""
    rome = tok(" Rome")["input_ids"][0]
    done = with_foil(waiting, tok, rome)
    assert (done.foil_id, done.foil_token) == (rome, " Rome") and "' Rome'" in done.notes[-1]
    with pytest.raises(InputError):
        with_foil(waiting, tok, waiting.true_id)


def test_an_object_in_the_prompt_is_noted():
    prepared = prepare(tokenizer("no_prefix_space"), fact("Paris or Rome: the capital of {} is"))
    assert len(prepared.notes) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_spell_the_text(kind):
    tok = tokenizer(kind)
    text = "The capital of New York is (Paris), not Rome."
    ids, _, special = encode(tok, text)
    assert "".join(piece(tok, i) for i, s in zip(ids, special, strict=True) if not s).removeprefix(" ") == text


# -- while typing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_live_tokenisation_of_a_complete_fact_is_the_prepared_one(kind):
    tok = tokenizer(kind)
    shown, prepared = live(tok, FRANCE), prepare(tok, FRANCE)
    assert shown.problems == () and shown.prepared == prepared
    assert tuple(t.token for t in shown.tokens) == prepared.tokens
    assert tuple(t.pos for t in shown.tokens if t.subject) == prepared.subject_positions
    assert [t.special for t in shown.tokens] == [i == tok.bos_token_id for i in prepared.input_ids]
    assert (shown.true.token, shown.foil.token) == (" Paris", " Rome")


def test_live_tokenisation_shows_what_there_is():
    tok = tokenizer("no_prefix_space")
    shown = live(tok, fact("The capital of {} is", "France", "New York", ""))
    assert [t.token for t in shown.tokens if t.subject] == [" France"]
    assert shown.true is None and shown.foil is None and shown.prepared is None
    assert {p.field for p in shown.problems} == {"true", "foil"}
    first = live(tok, fact(true="New York"), first_token=True)
    assert first.true.pieces == (" New", " York") and first.prepared is not None


def test_equal_objects_are_one_problem():
    (problem,) = live(tokenizer("no_prefix_space"), fact(true="Rome", foil="Rome")).problems
    assert "the same" in problem.what


def test_live_tokenisation_of_nothing():
    shown = live(tokenizer("no_prefix_space"), Fact("", "", "", ""))
    assert shown.tokens == () and {p.field for p in shown.problems} == {"prompt", "true"}
    assert live(ByT5Tokenizer(), FRANCE).tokens == ()
    assert len([p for p in live(ByT5Tokenizer(), FRANCE).problems if "offsets" in p.what]) == 1
