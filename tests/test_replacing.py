"""Another subject in the subject's place: which ones fit, which are chosen, and traces against plain forwards."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from fake_results import fake_result
from test_interventions import CLEAN, CORRUPT, OBJECTS, SUBJECT, Bench
from transformers import AutoTokenizer

from cache import Store
from core import cli, facts, models
from core.agreement import agreement
from core.asking import prepare_for
from core.catalog import DEMO_FOLDER
from core.errors import InputError
from core.identity import manifest_key, remember_identity
from core.links import View, from_query, to_query
from core.minimal import Search, minimal_set
from core.models import load_model
from core.patch_file import parse_patches
from core.patching import patch_many
from core.prompts import PreparedFact, prepare
from core.replacing import replaced_ids, with_replacements
from core.requests import Fact, TraceRequest
from core.trace import from_store, trace, trace_prepared

FRANCE = Fact("The capital of {} is", "France", "Paris", "Rome", case_id=3, relation="capital")
OCTOPUS = Fact("The {} is a kind of", "octopus", "mollusc", "bird")


@pytest.fixture(scope="module")
def tokenizer():  # noqa: ANN201
    return AutoTokenizer.from_pretrained(DEMO_FOLDER)


@pytest.fixture(scope="module")
def demo():  # noqa: ANN201
    return load_model("demo", dtype="float32", device="cpu")


# ---- which subjects fit ----------------------------------------------------------------------------------------------


def ids_with(tokenizer, name: str, fact: Fact = FRANCE) -> tuple[int, ...]:  # noqa: ANN001
    request = TraceRequest(fact, corruption="replace", replacement=(name,))
    return replaced_ids(tokenizer, request, prepare(tokenizer, fact), name)


def test_the_prompt_with_the_other_subject_is_what_the_tokenizer_makes_of_it(tokenizer) -> None:  # noqa: ANN001
    assert list(ids_with(tokenizer, " Spain ")) == tokenizer("The capital of Spain is").input_ids
    whole = Fact("In Egypt, the capital of Egypt is", "Egypt", "Cairo", "Rome", occurrence=2)
    assert list(ids_with(tokenizer, "Spain", whole)) == tokenizer("In Egypt, the capital of Spain is").input_ids


@pytest.mark.parametrize(
    ("fact", "name", "message"),
    [
        (FRANCE, "New Zealand", r"'New Zealand' takes 5 tokens .*\(' New' \+ .*'France' takes 1 \(' France'"),
        (FRANCE, "France", "'France' has the same tokens as 'France'"),
        # here the space before the subject is a token of its own, which another word takes along
        (OCTOPUS, "aardvark", "'octopus' the token at position 1 changes as well: ' ' becomes ' "),
    ],
)
def test_what_does_not_fit_is_named(tokenizer, fact: Fact, name: str, message: str) -> None:  # noqa: ANN001
    with pytest.raises(InputError, match=message) as caught:
        ids_with(tokenizer, name, fact)
    assert caught.value.field == "replacement" and caught.value.next


class Merging:
    """A tokenizer by hand: words, but the letter after 'Ix' goes with it."""

    is_fast = True
    all_special_tokens: list[str] = []
    unk_token_id = None

    def __call__(self, text: str, **options: object) -> dict:
        spans, at = [], 0
        for word in text.split(" "):
            end = at + len(word)
            if spans and text[spans[-1][0] : spans[-1][1]].strip() == "Ix":
                spans[-1] = (spans[-1][0], at + 1)
                at += 1
            spans.append((max(0, at - 1) if at and not word.startswith(text[at:at]) else at, end))
            at = end + 1
        pieces = [text[a:b] for a, b in spans]
        ids = [sum(map(ord, p)) * 31 + len(p) for p in pieces]
        self.pieces = {**getattr(self, "pieces", {}), **dict(zip(ids, pieces, strict=True))}
        return {"input_ids": ids, "offset_mapping": spans, "special_tokens_mask": [0] * len(ids)}

    def convert_ids_to_tokens(self, i: int) -> str:
        return self.pieces[i]

    def decode(self, ids: list[int], **options: object) -> str:
        return self.pieces[ids[0]]


def test_a_neighbour_that_changes_is_named() -> None:
    tokenizer = Merging()
    fact = Fact("We saw {} here", "Io", "a", "b")
    ids, pieces = tuple(tokenizer(fact.text)["input_ids"]), ("We", " saw", " Io", " here")
    prepared = PreparedFact(fact, ids, pieces, ((0, 2),) * 4, (2,), 1, 2, "a", "b")
    request = TraceRequest(fact, corruption="replace", replacement=("Ix",))
    with pytest.raises(InputError, match="token at position 3 changes as well: ' here' becomes 'ere'"):
        replaced_ids(tokenizer, request, prepared, "Ix")


# ---- which are chosen ------------------------------------------------------------------------------------------------


def by_the_rule(tokenizer, fact: Fact, pool: list[Fact], seed: int) -> list[str]:  # noqa: ANN001
    """Every subject that may be chosen, in order, worked out from the documented rule."""
    whole, start = tokenizer(fact.text).input_ids, fact.text.index(fact.subject)
    before, after = fact.text[:start], fact.text[start + len(fact.subject) :]
    left, right = len(tokenizer(before.rstrip()).input_ids), len(tokenizer(after).input_ids)
    mine = {f.subject for f in pool if f.relation == fact.relation}
    same = {f.subject for f in pool if f.relation == fact.relation and f.true == fact.true}
    out = []
    for names in (mine, {f.subject for f in pool} - mine):
        names = sorted(name for name in names - same if name.casefold() != fact.subject.casefold())
        random.Random(seed).shuffle(names)
        for name in names:
            ids = tokenizer(before + name + after).input_ids
            if len(ids) == len(whole) and ids[:left] == whole[:left] and ids[-right:] == whole[-right:]:
                out.append(name)
    return out


@pytest.mark.parametrize("index", [500, 1500, 3000])
def test_subjects_are_chosen_by_the_rule(tokenizer, index: int) -> None:  # noqa: ANN001
    pool = facts.bundled()
    fact = pool[index]
    request = TraceRequest(fact, corruption="replace", draws=7, seed=5)
    found = with_replacements(tokenizer, request, prepare(tokenizer, fact), pool)
    assert list(found.replacements) == by_the_rule(tokenizer, fact, pool, 5 + fact.case_id)[:7]
    answers = {f.subject: f.true for f in pool if f.relation == fact.relation}
    assert all(answers.get(name) != fact.true for name in found.replacements)
    assert any(name in answers for name in found.replacements)
    for name, ids in zip(found.replacements, found.replaced_ids, strict=True):
        assert list(ids) == tokenizer(fact.text.replace(fact.subject, name)).input_ids
    again = with_replacements(tokenizer, request, prepare(tokenizer, fact), pool)
    assert again == found
    other = with_replacements(tokenizer, request.replace(seed=6), prepare(tokenizer, fact), pool)
    assert other.replacements != found.replacements


def test_the_same_relation_comes_first_and_the_same_answer_never(tokenizer) -> None:  # noqa: ANN001
    pool = [
        Fact("The capital of {} is", "Gaul", "Paris", relation="capital"),  # the same answer
        Fact("The capital of {} is", "Spain", "Madrid", relation="capital"),
        *(Fact("{} is", name, "x", relation="other") for name in ("Egypt", "Cuba", "Peru", "Spain", "france")),
    ]
    request = TraceRequest(FRANCE, corruption="replace", draws=2)
    found = with_replacements(tokenizer, request, prepare(tokenizer, FRANCE), pool)
    assert found.replacements[0] == "Spain" and found.replacements[1] in ("Egypt", "Cuba", "Peru")


def test_too_few_subjects_are_counted(tokenizer) -> None:  # noqa: ANN001
    prepared = prepare(tokenizer, FRANCE)
    pool = [Fact("{} is", name, "x", relation="r") for name in ("Egypt", "Spain", "New Zealand of the south")]
    message = "Only 2 other subjects .* take 1 token at the same places .* but 3 draws"
    with pytest.raises(InputError, match=message) as caught:
        with_replacements(tokenizer, TraceRequest(FRANCE, corruption="replace", draws=3), prepared, pool)
    assert caught.value.field == "draws" and "at most 2" in caught.value.next
    with pytest.raises(InputError, match="No other subject of the fact list takes 1 token .* 'France'"):
        with_replacements(tokenizer, TraceRequest(FRANCE, corruption="replace"), prepared, pool[2:])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"corruption": "swap"}, "corruption is 'swap'"),
        ({"replacement": ("Spain",)}, "corruption is noise"),
        ({"corruption": "replace", "replacement": ("Spain", " ")}, "is empty"),
        ({"corruption": "replace", "replacement": ("Spain", "spain")}, "given twice"),
        ({"corruption": "replace", "replacement": ("a|b",)}, r"has a '\|' in it"),
        ({"corruption": "replace", "replacement": ("Spain", "Egypt"), "draws": 3}, "3 draws are asked for, but 2"),
    ],
)
def test_requests_that_contradict_themselves(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TraceRequest(FRANCE, **settings)


def test_named_subjects_are_the_draws() -> None:
    request = TraceRequest(FRANCE, corruption="replace", replacement=("Spain", " Egypt "))
    assert (request.draws, request.replacement) == (2, ("Spain", "Egypt"))
    assert TraceRequest.from_dict(json.loads(json.dumps(request.to_dict()))) == request


# ---- traces ----------------------------------------------------------------------------------------------------------


class Replaced(Bench):
    """The corrupt run is a plain run of other token ids."""

    def __init__(self, family: str) -> None:
        self.other = torch.randint(3, 200, (1, 9), generator=torch.Generator().manual_seed(1))
        self.other[0, list(SUBJECT)] = torch.tensor([211, 77])
        super().__init__(family)

    def ids_of(self, run: int) -> torch.Tensor:
        return self.other if run == CORRUPT else self.ids

    @contextlib.contextmanager
    def noised(self, run: int) -> Iterator[None]:
        yield


@pytest.mark.parametrize("family", ["demo", "qwen3_moe", "deepseek_v3", "granitemoe", "qwen3_next"])
def test_every_cell_and_expert_against_forwards_of_the_replaced_ids(family: str) -> None:
    bench = Replaced(family)
    tokens, others = tuple(bench.ids[0].tolist()), tuple(bench.other[0].tolist())
    assert [a != b for a, b in zip(tokens, others, strict=True)] == [pos in SUBJECT for pos in range(bench.n)]
    fact = PreparedFact(
        Fact("a {} b", "s", "t", "f"), tokens, tuple(map(str, tokens)), ((0, 1),) * bench.n, SUBJECT, *OBJECTS,
        "t", "f", replacements=("o",), replaced_ids=(others,),
    )  # fmt: skip
    where = (SUBJECT[-1], bench.n - 1)
    result = trace_prepared(bench.model, [fact], corruption="replace", experts=where)[0]
    frame = result.frame
    ends = {"clean": bench.forward(CLEAN), "corrupt": bench.forward(CORRUPT)}
    assert result.provenance.noise_sigma == 0 and result.provenance.replaced_ids == [list(others)]
    checked = 0
    for row in frame[frame.kind.isin(list(ends)) | (frame.index % 3 == 0)].itertuples():  # a third is enough
        if row.kind in ends:
            want = ends[row.kind]
        elif row.kind == "layer":
            value = bench.seen[CLEAN]["moe", row.layer][row.pos]
            want = bench.forward(CORRUPT, bench.write("moe", row.layer, row.pos, value))
        elif row.kind == "expert":
            delta = bench.update(row.layer, row.pos, row.expert)
            want = bench.forward(CORRUPT, bench.write("moe", row.layer, row.pos, delta, add=True))
        else:
            continue
        assert torch.allclose(torch.tensor([row.true_logit, row.foil_logit]).float(), want, atol=1e-4)
        checked += 1
    assert checked > 12 and (ends["clean"] - ends["corrupt"]).abs().max() > 0.01
    assert (frame.rescue - (frame.contrast - (ends["corrupt"][0] - ends["corrupt"][1]).item())).abs().max() < 1e-4


def test_draws_are_different_subjects_and_the_answer_comes_back_from_the_store(demo, tmp_path: Path) -> None:  # noqa: ANN001
    store = Store.open(tmp_path / "s.duckdb")
    request = TraceRequest(facts.bundled()[1500], model=demo.spec, corruption="replace", draws=3)
    result = trace(demo, request, store=store)
    names = result.provenance.replacements
    assert len(set(names)) == 3 and not result.cached
    contrasts = result.frame[result.frame.kind == "corrupt"].contrast
    for name, contrast in zip(names, contrasts, strict=True):
        alone = trace(demo, request.replace(draws=1, replacement=(name,)), store=store)
        assert alone.corrupt_contrast == pytest.approx(contrast, abs=1e-4)
    clean = trace(demo, request.fact.__class__(**{**vars(request.fact), "subject": names[0]}), experts="none")
    corrupt = result.frame[result.frame.kind == "corrupt"].iloc[0]
    assert clean.frame.iloc[0].true_logit == pytest.approx(corrupt.true_logit, abs=1e-4)  # a clean run of its own
    again = trace(demo, request, store=store)
    assert again.cached
    pd.testing.assert_frame_equal(again.frame, result.frame)
    noise = trace(demo, request.replace(corruption="noise"), store=store)
    assert not noise.cached and noise.provenance.replacements == [] and noise.drop != result.drop
    store.close()


def test_keys_know_what_counts() -> None:
    base = TraceRequest(FRANCE, corruption="replace", draws=2)
    named = TraceRequest(FRANCE, corruption="replace", replacement=("Spain",))

    def key(request: TraceRequest) -> str:
        return manifest_key(request, "model")

    assert key(base) == key(base.replace(noise=1.0)) and key(named) == key(named.replace(noise=1.0, seed=9))
    other = FRANCE.__class__(**{**vars(FRANCE), "relation": "x"})
    different = [base, base.replace(seed=1), base.replace(draws=3), base.replace(fact=other)]
    different += [named, named.replace(replacement=("Egypt",)), TraceRequest(FRANCE), TraceRequest(FRANCE, draws=2)]
    assert len({key(request) for request in different}) == len(different)


def test_patches_and_minimal_sets_of_a_replaced_subject(demo) -> None:  # noqa: ANN001
    request = TraceRequest(facts.bundled()[1500], model=demo.spec, corruption="replace", draws=2)
    frame = trace(demo, request).frame
    specs = parse_patches([{"name": "l", "steps": [{"site": "moe", "layer": 7, "pos": "last", "restore": "clean"}]}])
    got = patch_many(demo, [request], specs)[0].frame.query("name == 'l'")
    cells = frame[(frame.kind == "layer") & (frame.layer == 7) & (frame.pos == frame.pos.max())]
    assert got.rescue.to_numpy() == pytest.approx(cells.rescue.to_numpy(), abs=1e-4)
    found = minimal_set(demo, request, prepare_for(demo, request), Search(pos="last", max_steps=1, random_sets=0))
    active = frame[(frame.kind == "expert") & frame.clean_active.fillna(False)]
    experts = active.groupby(["layer", "expert"]).rescue.sum()
    assert (found.curve.layer[0], found.curve.expert[0]) == experts.idxmax()
    assert found.curve.rescue[0] == pytest.approx(experts.max() / 2, abs=1e-4)


# ---- command line, link, comparison ----------------------------------------------------------------------------------


@pytest.fixture
def loaded(demo, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN001
    """Commands find the demo loaded."""
    monkeypatch.setattr(models, "load_model", lambda *args, **options: demo)


def test_the_command(loaded: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["trace", "--fact", "1500", "--no-cache", "--experts", "none", "--out", str(tmp_path / "t.csv")]
    assert cli.main([*ask, "--corruption", "replace", "--draws", "2", "--replacement", "auto"]) == 0
    said = capsys.readouterr().out
    table = pd.read_csv(tmp_path / "t.csv")
    names = table.groupby("draw").replacement.unique()
    assert [len(some) for some in names] == [1, 1] and table.replacement[table.draw.isna()].isna().all()
    assert f"subject replaced by {names[0][0]}, {names[1][0]} (chosen)" in said
    assert (table.corruption == "replace").all() and table.noise.isna().all()
    assert cli.main([*ask, "--corruption", "replace", "--replacement", "Cape Town"]) == 0
    assert set(pd.read_csv(tmp_path / "t.csv").replacement.dropna()) == {"Cape Town"}
    assert cli.main([*ask, "--corruption", "replace", "--replacement", "A"]) == 2
    assert "does not fit: 'A' takes 1 token" in capsys.readouterr().err
    assert cli.main([*ask, "--replacement", "Cape Town"]) == 2
    assert "--replacement goes with --corruption replace" in capsys.readouterr().err


def test_a_files_own_subjects_stand_in(loaded: None, tmp_path: Path) -> None:
    rows = [
        {"case_id": 1, "prompt": "The capital of {} is", "subject": "France", "target_true": "Paris",
         "target_new": "Rome", "relation_id": "c"},
        {"case_id": 2, "prompt": "The capital of {} is", "subject": "Spain", "target_true": "Madrid",
         "target_new": "Rome", "relation_id": "c"},
    ]  # fmt: skip
    (tmp_path / "f.json").write_text(json.dumps(rows))
    ask = ["trace", "--facts", str(tmp_path / "f.json"), "--corruption", "replace", "--experts", "none"]
    assert cli.main([*ask, "--out", str(tmp_path / "t.csv"), "--no-cache"]) == 0
    table = pd.read_csv(tmp_path / "t.csv")
    assert table.groupby("case_id").replacement.agg(lambda s: s.dropna().unique().tolist()).to_dict() == {
        1: ["Spain"], 2: ["France"]
    }  # fmt: skip


@pytest.mark.parametrize("names", [(), ("Spain",), ("New Zealand", "Sri Lanka")])
def test_a_link_brings_it_back(names: tuple[str, ...]) -> None:
    request = TraceRequest(FRANCE, corruption="replace", replacement=names)
    query = to_query(request, View(), bundled=False)
    back = from_query(query, bundled=lambda case_id: None, default=FRANCE)
    assert back.request == request and not back.problems
    assert "corruption" not in to_query(TraceRequest(FRANCE), View(), bundled=False)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"corruption": "swap"}, "corruption=swap"),
        ({"replacement": "Spain"}, "other subject is left out.*corruption is noise"),
        ({"corruption": "replace", "replacement": "a|A"}, "left out.*twice"),
        ({"corruption": "replace", "replacement": "a|b", "draws": "5"}, "left out.*5 draws"),
    ],
)
def test_links_that_cannot_be_are_mended_and_said(changes: dict[str, str], words: str) -> None:
    query = to_query(TraceRequest(FRANCE), View(), bundled=False) | changes
    back = from_query(query, bundled=lambda case_id: None, default=FRANCE)
    assert back.request.replacement == ()
    assert any(pd.Series([problem]).str.contains(words).all() for problem in back.problems)


def test_noise_and_replacement_are_compared_by_their_best_cells() -> None:
    noise = fake_result(request=TraceRequest(FRANCE, draws=2))
    swap = fake_result(request=TraceRequest(FRANCE, draws=2, corruption="replace"))
    same = agreement(noise, swap)
    assert same is not None and same.agrees and same.noise_best == same.replace_best
    assert same.correlation == pytest.approx(1.0) and "both restore most" in same.sentence
    turned = swap.frame.copy()  # the map upside down
    layer = turned.kind == "layer"
    turned.loc[layer, ["true_logit", "foil_logit", "rescue"]] *= [1, 1, -1]
    corrupt = turned[turned.kind == "corrupt"].set_index("draw").contrast
    turned.loc[layer, "true_logit"] = (
        turned.foil_logit[layer] + turned.draw[layer].map(corrupt) + turned.rescue[layer]
    )
    other = agreement(noise, swap.__class__(**{**vars(swap), "frame": turned}))
    assert other is not None and not other.agrees and other.correlation == pytest.approx(-1.0)
    assert min(other.noise_share, other.replace_share) < 0.5 and "disagree" in other.sentence
    with pytest.raises(ValueError, match="two corruptions"):
        agreement(noise, noise)
    flat = swap.frame.copy()
    clean = flat.loc[flat.kind == "clean", "contrast"].iloc[0]
    flat.loc[flat.kind == "corrupt", "contrast"] = clean - 0.01
    assert agreement(noise, swap.__class__(**{**vars(swap), "frame": flat})) is None


def test_a_stored_answer_is_found_without_a_model(demo, tmp_path: Path) -> None:  # noqa: ANN001
    store = Store.open(tmp_path / "s.duckdb")
    remember_identity(store, demo.spec, demo.identity, label=demo.label)  # as loading with a store does
    request = TraceRequest(facts.bundled()[7], model=demo.spec, corruption="replace", experts="none")
    result = trace(demo, request, store=store)
    found = from_store(store, request)
    assert found is not None and found.provenance.replacements == result.provenance.replacements
    assert from_store(store, request.replace(seed=1)) is None
    store.close()
