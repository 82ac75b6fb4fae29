"""A whole study on small models: every row against plain hooks, the funnel against its rule, killing and going on."""

from __future__ import annotations

import random

import checkpoints
import pandas as pd
import planted
import pytest
import tokenizers_for_tests
import torch
from compare import TOLERANCE
from word_facts import any_contrast, word_facts

import core.facts
from cache.studies import Studies
from core.budget import Budget
from core.checks import ensure_checked
from core.errors import Cancelled, ExpertScopeError, InputError, StoreBusy
from core.models import load_model
from core.moe import MoeModel
from core.progress import Progress
from core.requests import Fact
from core.room import Room
from core.study import archive, data, locks, selection
from core.study import rows as table
from core.study.data import create
from core.study.measure import measure
from core.study.run import run
from core.study.settings import preset
from tests import oracle


@pytest.fixture(scope="module")
def model() -> MoeModel:
    """A shared expert, dense layers mixed in, norm of the router weights off."""
    found = MoeModel(checkpoints.build("qwen2_moe"), tokenizers_for_tests.tokenizer("prefix_space"))
    ensure_checked(found)
    return found


@pytest.fixture(scope="module")
def study(model, tmp_path_factory):
    """A finished study of `model`: its store and its data."""
    book = Studies(tmp_path_factory.mktemp("study") / "store.duckdb")
    create(book, "words", any_contrast(), word_facts(), batch_tokens=300)
    run(book, model, "words")
    return book, data.load(book, "words")


# ---- the numbers ----------------------------------------------------------------------------------------------------


def noise_of(study: data.StudyData, row: pd.Series) -> dict[str, float | int]:
    """Seed and level of a row's noise by its stage (protocol.md, 8)."""
    if row.stage == table.FRESH_DRAW:
        return {"seed": 1_000_000, "level": study.settings.noise}
    level = float(row.stage.removeprefix("noise_")) if row.stage.startswith("noise_") else study.settings.noise
    return {"seed": study.settings.seed, "level": level}


def patched_y(asked: oracle.Oracle, row: pd.Series, partner: int | None) -> torch.Tensor:
    """The block output that a row's kind prescribes, from the recorded runs."""
    layer, pos, draw = int(row.layer), int(row.pos), int(row.draw)
    if row.kind == table.LAYER:
        return asked.clean_run[layer].y[pos]
    y = asked.corrupt_runs[draw][layer].y[pos]
    if row.kind in (table.EQUAL_NORM_SELECTED, table.EQUAL_NORM_CONTROL):
        mine, other = (asked.expert_update(draw, layer, pos, e) for e in (int(row.expert), partner))
        return y + mine * min(1.0, (other.norm() / mine.norm()).item())
    if row.kind == table.ROUTING_UNION:
        experts = asked.experts_at(draw, layer, pos)
    elif pd.isna(row.expert):
        experts = [int(e) for e in row.experts.split(",")]
    else:
        experts = [int(row.expert)]
    return y + sum(asked.expert_update(draw, layer, pos, e) for e in experts)


def test_every_kind_of_row_is_what_plain_hooks_measure(model, study):
    _, found = study
    rows = found.rows
    pairs = rows[rows.kind.isin([table.EQUAL_NORM_SELECTED, table.EQUAL_NORM_CONTROL])]
    validation = pairs.scan_index.iloc[0]  # a validation fact in which the selected expert is active
    discovery = rows.scan_index[rows.split == table.DISCOVERY].iloc[0]
    chosen = rows[rows.scan_index.isin([discovery, validation])]
    assert set(chosen.kind) == set(table.KINDS)
    assert set(chosen.stage) == {"main", "fresh_draw", "coalition_search", "noise_1", "noise_2", "noise_4"}
    asked: dict[tuple, oracle.Oracle] = {}
    worst = 0.0
    for _, row in chosen.iterrows():
        fact = found.kept[row.scan_index]
        noise = noise_of(found, row)
        key = (row.scan_index, *noise.values())
        if key not in asked:
            asked[key] = oracle_of(model, fact, **noise)
        of = asked[key]
        mates = pairs[(pairs.scan_index == row.scan_index) & (pairs.kind != row.kind)]
        y = patched_y(of, row, int(mates.expert.iloc[0]) if len(mates) else None)
        place = {"layer": int(row.layer), "pos": int(row.pos)}
        ends = oracle.clean(model.model, of.case), oracle.corrupt(model.model, of.case, int(row.draw))
        clean, corrupt = (true - foil for true, foil in ends)
        true, foil = oracle.patched(model.model, of.case, int(row.draw), **place, y=y)
        assert row.noise == noise["level"] and row.pos == len(of.case.input_ids) - 1
        got = torch.tensor([row.clean_contrast, row.corrupt_contrast, row.rescue])
        worst = max(worst, (got - torch.tensor([clean, corrupt, true - foil - corrupt])).abs().max().item())
        if pd.notna(row.expert):
            active = of.clean_run[place["layer"]].active(place["pos"])
            weight = of.clean_run[place["layer"]].router_weight(place["pos"], int(row.expert))
            assert row.clean_active == (int(row.expert) in active)
            assert row.router_weight_clean == pytest.approx(weight, abs=1e-6)
    assert worst <= TOLERANCE
    assert chosen.rescue.abs().max() > 0.1  # the patches matter


def oracle_of(model: MoeModel, fact: Fact, *, seed: int, level: float) -> oracle.Oracle:
    """The oracle's view of a fact, tokenised without any of our rules: its words are the tokenizer's words."""
    text = fact.prompt.format(fact.subject)
    encoded = model.tokenizer(text, return_offsets_mapping=True)
    start = fact.prompt.index("{}")
    end = start + len(fact.subject)
    spans = [(a + (text[a] == " "), b) for a, b in encoded["offset_mapping"]]
    subject = tuple(i for i, (a, b) in enumerate(spans) if a < end and b > start)
    (true,), (foil,) = (model.tokenizer(f" {word}".strip())["input_ids"] for word in (fact.true, fact.foil))
    noise = oracle.make_noise(
        model.model, draws=2, n_subject=len(subject), seed=seed, case_id=fact.case_id, level=level
    )
    return oracle.Oracle(model.model, oracle.Case(torch.tensor(encoded["input_ids"]), subject, true, foil, noise))


def test_rows_are_complete(model, study):
    """Every fact has every layer and every expert that its clean run routes to, in every draw."""
    _, found = study
    main = found.rows[found.rows.stage == table.MAIN]
    for kind, per_layer in ((table.LAYER, 1), (table.EXPERT, model.top_k)):
        counts = main[main.kind == kind].groupby(["scan_index", "draw", "layer"]).size()
        assert len(counts) == 12 * 2 * len(model.moe_layers) and set(counts) == {per_layer}
    whole = main[main.kind == table.LAYER].set_index(["scan_index", "draw", "layer"]).rescue
    union = main[main.kind == table.ROUTING_UNION].set_index(["scan_index", "draw", "layer"]).rescue
    shared = (union - whole.reindex(union.index)).abs()  # this family's shared expert is in the layer patch alone
    assert len(union) == 6 * 2 and shared.max() > 1e-3


def test_without_joint_search_and_cut_otherwise_the_same_numbers_of_the_selected_layer(
    model, study, tmp_path, monkeypatch
):
    """In larger batches, with fewer tokens through a layer at a time: within 1e-5, of numbers above 1 that share."""
    book = Studies(tmp_path / "store.duckdb")
    small = Budget(chunk_tokens=Room(64), kept_bytes=2**24)
    monkeypatch.setattr(Budget, "measure", classmethod(lambda cls, model: small))
    create(book, "layer", any_contrast(joint_search=False), word_facts())
    run(book, model, "layer")
    plans = [record.plan for record in (book.get("layer"), study[0].get("words"))]
    assert plans[0]["chunk_tokens"] < plans[1]["chunk_tokens"] and plans[0]["batch_tokens"] > plans[1]["batch_tokens"]
    alone, whole = data.load(book, "layer").rows, study[1].rows
    layer = selection.best_layer(whole)
    assert set(alone[alone.kind == table.EXPERT].layer) == {layer}
    keys = ["scan_index", "draw", "stage", "kind", "layer", "expert", "experts"]
    whole = whole[(whole.kind != table.EXPERT) | (whole.layer == layer)].drop_duplicates(keys)
    both = alone.drop_duplicates(keys).merge(whole, on=keys, how="outer", suffixes=("", "_whole"), indicator=True)
    assert set(both._merge) == {"both"}
    apart = (both.rescue - both.rescue_whole).abs() / both.rescue_whole.abs().clip(lower=1.0)
    assert 0 < apart.max() <= 1e-5


def test_equal_patches_are_measured_once(model, study, monkeypatch):
    """The clean top-k of a fact is also the longest prefix of each rule: one patch, several rows."""
    from core.study import measure as module

    seen = []

    def spy(*args, **kwargs):
        out = sweep(*args, **kwargs)
        seen.append(len(out.patches))
        return out

    sweep = module.sweep
    monkeypatch.setattr(module, "sweep", spy)
    fact = data.load(study[0], "words").kept[0]
    from core.asking import prepare_for
    from core.requests import TraceRequest

    prepared = prepare_for(model, TraceRequest(fact, model.spec))
    draws = module.Draws(table.MAIN, 3.0, 0, 1)
    layer = model.moe_layers[-1]
    wants = tuple(module.Want(kind, layer, experts=(1, 2)) for kind in (table.CLEAN_TOPK, table.MINIMAL))
    frame = measure(model, model.structure, [module.Item(0, prepared, draws, wants=wants)], chunk_tokens=64)
    assert seen == [1] and len(frame) == 2 and frame.rescue.nunique() == 1


# ---- the funnel -----------------------------------------------------------------------------------------------------


def test_funnel_follows_the_rule(model, study, tmp_path):
    """Thresholds in the middle of what occurs: the same facts fall as when the rule is applied by hand."""
    measured = study[1].scanned.set_index("place")
    clean, drop = measured.clean_contrast.median(), measured["drop"].median()
    book = Studies(tmp_path / "store.duckdb")
    settings = any_contrast(n=6, min_clean_contrast=clean - 1.0, min_drop=drop - 1.0)
    create(book, "filtered", settings, word_facts(), batch_tokens=1)
    run(book, model, "filtered")
    found = data.load(book, "filtered")
    order = word_facts()
    random.Random(0).shuffle(order)
    assert [f.case_id for f in found.records] == [f.case_id for f in order]
    fell, kept = {"unusable": 0, "objects": 0, "clean_contrast": 0, "drop": 0}, []
    for fact in order:
        if len(kept) == 6:
            break
        if fact.foil is None:
            fell["unusable"] += 1
        elif fact.true == "Marie Curie":
            fell["objects"] += 1
        else:
            of = oracle_of(model, fact, seed=0, level=3.0)
            ends = [oracle.clean(model.model, of.case), *(oracle.corrupt(model.model, of.case, d) for d in (0, 1))]
            c, *others = (true - foil for true, foil in ends)
            if c < clean - 1.0:
                fell["clean_contrast"] += 1
            elif c - sum(others) / 2 < drop - 1.0:
                fell["drop"] += 1
            else:
                kept.append(fact.case_id)
    assert {name: found.funnel.counts[name] for name in fell} == fell
    assert [fact.case_id for fact in found.kept] == kept
    assert found.funnel.counts["scanned"] == sum(fell.values()) + len(kept)
    assert fell["clean_contrast"] + fell["drop"] > 0


def test_too_few_facts_are_a_failure_in_words(model, tmp_path):
    book = Studies(tmp_path / "store.duckdb")
    create(book, "strict", any_contrast(min_clean_contrast=500), word_facts())
    with pytest.raises(ExpertScopeError, match="Only 0 of 14 scanned facts passed the filters"):
        run(book, model, "strict")
    record = book.get("strict")
    assert record.state == data.FAILED and "Only 0 of 14" in record.note


# ---- stopping, going on, waiting ------------------------------------------------------------------------------------


class StopAfter(Progress):
    """Asks to stop at the n-th look."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    def check(self) -> None:
        self.looks -= 1
        if self.looks < 0:
            raise Cancelled()


def test_cancelled_and_resumed_gives_the_same_study_to_the_last_bit(model, study, tmp_path):
    book = Studies(tmp_path / "store.duckdb")
    create(book, "words", any_contrast(), word_facts(), batch_tokens=300)
    stops, done = 0, []
    for looks in (60, 25, 70, 10**9):
        try:
            run(book, model, "words", progress=StopAfter(looks))
        except Cancelled:
            stops += 1
            assert book.get("words").state == data.CANCELLED
        done.append(len(book.part_names("words")))
    assert stops >= 2 and done == sorted(done) and len(set(done)) >= 3  # what was done was kept, and not done again
    assert book.get("words").state == data.DONE
    mine, whole = data.load(book, "words"), study[1]
    assert mine.rows.equals(whole.rows)
    assert mine.scanned.equals(whole.scanned)
    assert book.parts("words").keys() == study[0].parts("words").keys()


def test_a_stop_that_another_process_asked_for(model, tmp_path, monkeypatch):
    from core.study import run as module

    monkeypatch.setattr(module, "_ASK_EVERY", 0.1)
    book = Studies(tmp_path / "store.duckdb")
    create(book, "words", any_contrast(), word_facts())

    class Ask(Progress):
        def update(self, done, total, label=""):
            if label.startswith("layer sweep"):
                book.update("words", stop=True)

    with pytest.raises(Cancelled):
        run(book, model, "words", progress=Ask())
    assert book.get("words").state == data.CANCELLED and ("scan", 0) in book.part_names("words")
    run(book, model, "words")  # going on forgets that it was asked to stop
    assert book.get("words").state == data.DONE


def test_another_model_is_refused(study, tmp_path):
    book, _ = study
    other = MoeModel(checkpoints.build("qwen2_moe"), tokenizers_for_tests.tokenizer("prefix_space"))
    with pytest.raises(InputError, match="began with another model.*model files"):
        run(book, other, "words")


def test_studies_of_one_model_wait_for_one_another(model, tmp_path):
    book = Studies(tmp_path / "store.duckdb")
    create(book, "second", any_contrast(), word_facts())
    labels = []

    class Watch(Progress):
        def update(self, done, total, label=""):
            labels.append(label)

        def check(self):
            if labels and labels[-1].startswith("waiting"):
                first.__exit__(None, None, None)  # the first one ends

    first = locks.waiting(locks.folder_beside(book.path), f"model {model.identity}", label="")
    first.__enter__()
    run(book, model, "second", progress=Watch())
    assert labels[0] == "waiting for another study of this model"
    assert book.get("second").state == data.DONE


def test_a_study_runs_once_at_a_time_and_a_dead_one_is_interrupted(model, tmp_path):
    book = Studies(tmp_path / "store.duckdb")
    create(book, "words", any_contrast(), word_facts())
    book.update("words", state=data.RUNNING)  # as a killed process leaves it
    record = book.get("words")
    assert data.state_of(book, record) == data.INTERRUPTED
    with locks.trying(locks.folder_beside(book.path), f"study {record.id}") as mine:
        assert mine and data.state_of(book, record) == data.RUNNING
        with pytest.raises(InputError, match="running already"):
            run(book, model, "words")
    assert data.state_of(book, record) == data.INTERRUPTED


def test_progress_says_how_far_it_is(study):
    progress = study[0].get("words").progress
    assert progress["fraction"] == 1.0 and progress["seconds_left"] == pytest.approx(0.0, abs=1e-6)
    assert progress["funnel"] == study[1].funnel.counts
    assert progress["facts_done"] == progress["facts_total"] == 6 and progress["facts_per_minute"] > 0
    assert progress["label"] == "validation"


# ---- one file -------------------------------------------------------------------------------------------------------


def test_exported_and_imported_is_the_same_study(study, tmp_path):
    book, found = study
    other = Studies(tmp_path / "store.duckdb")
    content = archive.pack(book, "words")
    assert archive.unpack(other, content) == "words"
    again = data.load(other, "words")
    assert again.rows.equals(found.rows) and again.settings == found.settings and again.kept == found.kept
    assert again.plan == found.plan and again.provenance == found.provenance and again.state == data.DONE
    assert archive.pack(other, "words") == content
    with pytest.raises(InputError, match="There is a study 'words' already"):
        archive.unpack(other, content)
    assert archive.unpack(other, content, name="copy") == "copy"
    assert {record.name for record in other.all()} == {"words", "copy"}


# ---- planted truth --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "verdict", "layer", "expert"),
    [
        ("expert", "specific expert", 1, "L01E005"),
        ("coalition", "coalition", 1, None),
        ("own", "no recurrent expert", 1, None),
        ("nothing", "no layer-level localisation", None, None),
    ],
)
def test_planted_truth_is_found(kind, verdict, layer, expert, tmp_path):
    from core.study.summary import summarise

    truth = planted.build(kind)
    book = Studies(tmp_path / "store.duckdb")
    create(
        book,
        kind,
        preset("paper", n=len(truth.facts), resamples=1000, flips=1000, noise_levels=(), fresh_draw=False),
        truth.facts,
    )
    run(book, truth.model, kind)
    found = data.load(book, kind)
    summary = summarise(found.rows, found.settings.to_dict(), found.funnel.counts)
    assert summary["verdict"] == verdict
    if layer is not None:
        assert summary["layer"] == layer
    if expert is not None:
        assert summary["expert"] == expert
    if kind == "coalition":
        minimal = found.rows[(found.rows.kind == table.MINIMAL) & (found.rows.split == table.VALIDATION)]
        assert set(minimal.experts) == {"2,6"} and summary["expert"] in ("L01E002", "L01E006")
        assert {member["expert"] for member in summary["coalition"]["members"]} == {"L01E002", "L01E006"}
        assert (
            "Most often in it: L1E002 (" in summary["verdict_words"][-1] and "L1E006 (" in summary["verdict_words"][-1]
        )
    if kind == "own":
        assert summary["expert"] is None


def test_a_batch_waits_for_the_store(model, tmp_path, monkeypatch):
    """Another process has the store when a batch is to be committed: what was measured is not lost."""
    book = Studies(tmp_path / "store.duckdb")
    create(book, "words", any_contrast(noise_levels=()), word_facts())
    commit, refusals, labels = Studies.commit, [], []

    def busy(self, *args, **kwargs):
        if len(refusals) < 3:
            refusals.append(1)
            raise StoreBusy("The store is in use by another process (PID 1).")
        return commit(self, *args, **kwargs)

    class Watch(Progress):
        def update(self, done, total, label=""):
            labels.append(label)

    monkeypatch.setattr(Studies, "commit", busy)
    run(book, model, "words", progress=Watch())
    assert book.get("words").state == data.DONE
    assert labels.count("waiting for the store. The store is in use by another process (PID 1).") == 3


def test_one_subject_cannot_be_split_by_subject(model, tmp_path):
    book = Studies(tmp_path / "store.duckdb")
    facts = [fact for fact in word_facts() if fact.subject == "France"]
    facts += [Fact(fact.prompt, fact.subject, fact.foil, fact.true, case_id=fact.case_id + 20) for fact in facts]
    create(book, "words", any_contrast(n=6), facts)
    with pytest.raises(ExpertScopeError, match="cannot be split by subject"):
        run(book, model, "words")


def test_weights_on_the_disk_are_read_four_times(tmp_path):
    """Filters, layer sweep, coalition search, validation: one pass each, whatever the number of facts."""
    book = Studies(tmp_path / "store.duckdb")
    demo = load_model("demo", dtype="float32", device="cpu", placement="disk")
    create(book, "disk", preset("demo", n=12, noise_levels=()), core.facts.bundled()[:200])
    before = demo.bytes_read
    run(book, demo, "disk")
    layers = sum(value.numel() * 2 for layer in demo.layers for value in layer.parameters())  # bf16 on the disk
    assert demo.bytes_read - before == 4 * layers
    assert set(data.load(book, "disk").rows.kind) >= {table.LAYER, table.EXPERT, table.MINIMAL, table.ROUTING_UNION}
