"""Averages over facts against plain forward hooks, every cell and expert patch a run of its own: the demo and a family
with a dense layer and a shared expert. And that what was asked comes back from the store."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack

import checkpoints
import numpy as np
import pandas as pd
import pytest
import tokenizers_for_tests
import torch
from word_facts import word_facts

from cache import Store
from core import cli, cli_options, facts
from core.asking import prepare_for
from core.averages import tables
from core.averages.questions import NOBODY, SHOWN_ROLES, cells_request, experts_request
from core.averages.site_sweep import window_layers
from core.checks import ensure_checked
from core.derived import derive
from core.errors import Cancelled, InputError
from core.fact_sets import FactSet, choose
from core.identity import remember_identity
from core.models import load_model
from core.moe import MoeModel
from core.progress import Progress
from core.requests import ModelSpec, TraceRequest
from core.roles import FURTHER, LAST, LAST_SUBJECT, MIDDLE_SUBJECT, roles_of
from core.trace import from_store, trace
from tests import oracle

TOL = 1e-4


@pytest.fixture(scope="module")
def demo():
    return load_model("demo")


@pytest.fixture(scope="module")
def deepseek():
    model = MoeModel(checkpoints.build("deepseek_v3"), tokenizers_for_tests.tokenizer("prefix_space"))
    ensure_checked(model)
    return model


@pytest.fixture(scope="module")
def worlds(demo, deepseek):
    """{name: (model, its facts, settings)}."""
    known = facts.bundled()
    several = [fact for fact in known if " of " in fact.text.split(fact.subject)[-1]]
    chosen = [known[3], several[0], several[-1]]
    return {
        "demo": (demo, tuple(chosen), TraceRequest(NOBODY, draws=1)),
        "deepseek": (deepseek, tuple(word_facts()[:3]), TraceRequest(NOBODY, ModelSpec("ours"), draws=2, seed=5)),
    }


class Plain:
    """One fact on one model by plain hooks: what every sublayer puts out in the clean run, and corrupt runs with some
    of it written in."""

    def __init__(self, model: MoeModel, asked: TraceRequest, fact) -> None:
        request = dataclasses.replace(asked, fact=fact)
        self.model, self.fact = model.model, prepare_for(model, request)
        ids, subject = torch.tensor(self.fact.input_ids), self.fact.subject_positions
        noise = oracle.make_noise(
            self.model, draws=asked.draws, n_subject=len(subject), seed=asked.seed, case_id=fact.case_id,
            level=asked.noise,
        )  # fmt: skip
        self.case = oracle.Case(ids, subject, self.fact.true_id, self.fact.foil_id, noise)
        self.seen: dict = {}
        with ExitStack() as stack:
            for site in ("attention", "moe", "residual"):
                for layer, module in self.modules(site).items():

                    def keep(m, a, k, out, key=(site, layer)):
                        self.seen[key] = oracle.first(out).reshape(len(ids), -1).clone()

                    stack.enter_context(oracle.hooked(module, keep))
            self.clean = self.contrast(oracle.clean(self.model, self.case))
        self.corrupt = [self.contrast(oracle.corrupt(self.model, self.case, j)) for j in range(asked.draws)]
        self.drop = self.clean - float(np.mean(self.corrupt))
        self.roles = roles_of(len(ids), subject)

    def modules(self, site: str):
        layers = oracle.layers_of(self.model)
        if site == "moe":
            return oracle.find_blocks(self.model)
        return {i: layer.self_attn if site == "attention" else layer for i, layer in enumerate(layers)}

    @staticmethod
    def contrast(logits) -> float:
        return logits[0] - logits[1]

    @torch.no_grad()
    def rescue(self, site: str, layers, pos: int) -> float:
        """Mean over the draws."""
        total = 0.0
        for draw, corrupt in enumerate(self.corrupt):
            with ExitStack() as stack:
                for one in ("attention", "moe") if site == "layer" else (site,):
                    for layer in layers:
                        value = self.seen[one, layer][pos]

                        def write(m, a, k, out, value=value):
                            hidden = oracle.first(out).clone()
                            hidden.view(-1, hidden.shape[-1])[pos] = value
                            return oracle.like(out, hidden)

                        stack.enter_context(oracle.hooked(self.modules(one)[layer], write))
                total += self.contrast(oracle.corrupt(self.model, self.case, draw)) - corrupt
        return total / len(self.corrupt)


@pytest.fixture(scope="module")
def plain(worlds):
    return {name: [Plain(model, asked, fact) for fact in its] for name, (model, its, asked) in worlds.items()}


CASES = [
    ("demo", "moe", 1, 2, (2,)), ("demo", "moe", 4, 6, (4, 5, 6, 7)), ("demo", "attention", 1, 3, (3,)),
    ("deepseek", "moe", 3, 1, (1, 2)), ("deepseek", "attention", 2, 1, (0, 1)), ("deepseek", "layer", 1, 2, (2,)),
    ("deepseek", "residual", 1, 0, (0,)),
]  # fmt: skip
"""(model, site, window, layer, the layers that are restored together)."""


@pytest.mark.parametrize(("name", "site", "window", "layer", "together"), CASES)
def test_averages_of_a_site_are_what_plain_hooks_say(worlds, plain, name, site, window, layer, together):
    model, its, asked = worlds[name]
    result = derive(model, cells_request(asked, its, site=site, window=window))
    table = tables.role_table(result, min_drop=None)
    by_hand = plain[name]
    for one, row in zip(by_hand, result.tables["facts"].itertuples(), strict=True):
        assert row.clean_contrast == pytest.approx(one.clean, abs=TOL)
        assert row.drop == pytest.approx(one.drop, abs=TOL)
    seen = set()
    for role in SHOWN_ROLES:
        means, drops, tokens = [], [], 0
        for one in by_hand:
            positions = [pos for pos, its_role in enumerate(one.roles) if its_role == role]
            if positions:
                means.append(np.mean([one.rescue(site, together, pos) for pos in positions]))
                drops.append(one.drop)
                tokens += len(positions)
        got = table[(table.layer == layer) & (table.role == role)]
        if not means:
            assert got.empty or (got.n.item(), got.rescue.isna().item()) == (0, True)
            continue
        seen.add(role)
        assert got.rescue.item() == pytest.approx(np.mean(means), abs=TOL)
        assert (got.n.item(), got.n_missing.item()) == (len(means), len(by_hand) - len(means))
        assert got.n_tokens.item() == tokens
        if np.mean(drops) >= 0.05:
            assert got.restoration.item() == pytest.approx(np.mean(means) / np.mean(drops), rel=1e-3, abs=TOL)
        else:
            assert np.isnan(got.restoration.item())
    assert {LAST_SUBJECT, LAST} <= seen


def test_windows_are_romes_and_only_of_layers_that_have_the_site():
    rome = {layer: tuple(range(max(0, layer - 10 // 2), min(48, layer - (-10 // 2)))) for layer in range(48)}
    assert window_layers(range(48), 10) == rome
    assert window_layers([1, 3, 4], 3) == {1: (1,), 3: (3, 4), 4: (3, 4)}
    assert window_layers([0, 1, 2], 1) == {0: (0,), 1: (1,), 2: (2,)}


@pytest.mark.parametrize(
    ("name", "role", "layer"), [("demo", FURTHER, 6), ("deepseek", LAST, 2), ("deepseek", LAST_SUBJECT, 1)]
)
def test_averages_of_experts_are_what_plain_hooks_say(worlds, plain, name, role, layer):
    model, its, asked = worlds[name]
    result = derive(model, experts_request(asked, its, role=role))
    table = tables.expert_table(result, min_drop=None)
    table = table[table.layer == layer].set_index("expert")
    everyone: dict[int, list[float]] = {}
    active: dict[int, list[float]] = {}
    n, drops = 0, []
    for one in plain[name]:
        positions = [pos for pos, its_role in enumerate(one.roles) if its_role == role]
        if not positions:
            continue
        n, asker = n + 1, oracle.Oracle(one.model, one.case)
        drops.append(one.drop)
        values: dict[int, list[float]] = {}
        for pos in positions:
            experts = asker.clean_run[layer].active(pos)
            draws = range(asked.draws)
            patches = {expert: [asker.expert_patch(j, layer, pos, expert) for j in draws] for expert in experts}
            if asker.clean_run[layer].shared is not None:
                patches[-1] = [asker.shared_patch(j, layer, pos) for j in draws]
            for expert, logits in patches.items():
                rescue = np.mean([one.contrast(both) - c for both, c in zip(logits, one.corrupt, strict=True)])
                values.setdefault(expert, []).append(float(rescue))
        for expert, some in values.items():
            everyone.setdefault(expert, []).append(sum(some) / len(positions))
            active.setdefault(expert, []).append(float(np.mean(some)))
    assert set(table.index) == set(everyone)
    for expert, row in table.iterrows():
        assert row.rescue == pytest.approx(sum(everyone[expert]) / n, abs=TOL)
        assert row.rescue_active == pytest.approx(np.mean(active[expert]), abs=TOL)
        assert (row.n_active, row.n, row.n_missing) == (len(active[expert]), n, len(plain[name]) - n)
        if np.mean(drops) >= 0.05:
            assert row.restoration == pytest.approx(row.rescue / np.mean(drops), rel=1e-3, abs=TOL)
        else:
            assert np.isnan(row.restoration)


def test_facts_that_the_model_cannot_take_are_counted_and_all_orders_agree(deepseek):
    its = tuple(word_facts())
    asked = TraceRequest(NOBODY, ModelSpec("ours"), object_tokens="space")
    result = derive(deepseek, cells_request(asked, its, site="attention"))
    assert [left["case_id"] for left in result.values["left_out"]] == [50, 51]
    assert list(result.tables["facts"].case_id) == [fact.case_id for fact in its[:-2]]
    assert list(result.tables["facts"].fact) == list(range(len(its) - 2))
    again = derive(deepseek, cells_request(asked, its[::-1], site="attention"))
    one, other = tables.role_table(result, min_drop=None), tables.role_table(again, min_drop=None)
    np.testing.assert_allclose(one.rescue, other.rescue, atol=TOL)


def test_a_role_that_no_fact_has_leaves_nothing_but_the_facts(deepseek):
    its = tuple(fact for fact in word_facts() if fact.subject == "France")
    result = derive(deepseek, experts_request(TraceRequest(NOBODY, ModelSpec("ours")), its, role=MIDDLE_SUBJECT))
    assert len(result.tables["facts"]) == len(its)
    assert result.tables["cells"].empty and result.tables["experts"].empty
    assert tables.expert_table(result, min_drop=None).empty


def test_the_answer_alone_is_stored_and_it_is_what_traces_say(worlds, home):
    model, its, asked = worlds["demo"]
    with Store.open() as store:
        remember_identity(store, ModelSpec("demo"), model.identity, label=model.label)
        request = cells_request(asked, its)
        first, again = derive(model, request, store=store), derive(model, request, store=store)
        assert again.cached and not first.cached
        one = dataclasses.replace(asked, fact=its[1], experts="none")
        assert from_store(store, one) is None, "vectors of every fact would push everything else out"
    found, cells = trace(model, one), first.tables["cells"]
    layer = found.frame[found.frame.kind == "layer"]
    np.testing.assert_allclose(cells[cells.fact == 1].rescue.to_numpy(), layer.rescue.to_numpy(), atol=1e-5)


def test_an_automatic_foil_is_the_clean_runs_best_other_token_at_every_site(worlds):
    model, its, asked = worlds["demo"]
    auto = tuple(dataclasses.replace(fact, foil=None, foil_auto=True) for fact in its)
    both = [derive(model, cells_request(asked, auto, site=site)).tables["facts"] for site in ("moe", "residual")]
    assert list(both[0].foil) == list(both[1].foil)
    np.testing.assert_allclose(both[0].clean_contrast, both[1].clean_contrast, atol=TOL)
    assert (both[0].clean_contrast.to_numpy() != 0).all()


@pytest.mark.parametrize("site", ["moe", "attention"])
def test_another_subject_may_stand_in_and_cancelling_stops(worlds, site):
    model, its, asked = worlds["demo"]
    replaced = dataclasses.replace(asked, corruption="replace", draws=2)
    result = derive(model, cells_request(replaced, its, site=site))
    assert len(result.tables["facts"]) + len(result.values["left_out"]) == len(its)
    assert "noise" not in result.request.get()

    class Stop(Progress):
        def check(self) -> None:
            raise Cancelled

    with pytest.raises(Cancelled):
        derive(model, cells_request(asked, its, site=site), progress=Stop())


def test_what_there_is_not_is_refused_in_words(worlds):
    _, its, asked = worlds["demo"]
    for bad in ({"site": "mlp"}, {"window": 0}):
        with pytest.raises(InputError):
            cells_request(asked, its, **bad)
    with pytest.raises(InputError):
        experts_request(asked, its, role="before subject")


def test_the_command_writes_what_the_page_shows(worlds, demo, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli_options, "load", lambda spec, store, progress: demo)
    out, each = tmp_path / "roles.csv", tmp_path / "each.parquet"
    known = facts.bundled()
    arguments = ["averages", "--n", "3", "--facts-seed", "2", "--site", "residual", "--min-drop", "all", "--seed", "1"]
    assert cli.main([*arguments, "--out", str(out), "--each", str(each)]) == 0
    asked = TraceRequest(NOBODY, seed=1)
    result = derive(demo, cells_request(asked, choose(FactSet(n=3, seed=2), known), site="residual"))
    table = tables.role_table(result, min_drop=None)
    pd.testing.assert_frame_equal(pd.read_csv(out), table, check_dtype=False, atol=TOL)
    cells = pd.read_parquet(each)
    assert len(cells) == len(result.tables["cells"]) and set(cells.subject) == set(result.tables["facts"].subject)
    said = capsys.readouterr().out
    assert "3 of 3 facts; none is left out." in said and f"{len(table):,} rows written to {out}" in said
    best = table[(table.role == LAST) & (table.rescue == table[table.role == LAST].rescue.max())].iloc[0]
    assert f"L{best.layer}" in next(line for line in said.splitlines() if line.startswith(LAST))

    monkeypatch.setattr(cli_options, "load", None)  # stored: no model is needed
    with Store.open() as store:  # which loading does
        remember_identity(store, ModelSpec("demo"), demo.identity, label=demo.label)
    remembered = tmp_path / "again.json"
    assert cli.main([*arguments, "--out", str(remembered)]) == 0
    assert len(pd.read_json(remembered)) == len(table)


def test_the_command_tells_experts_at_a_role(worlds, demo, monkeypatch, capsys):
    monkeypatch.setattr(cli_options, "load", lambda spec, store, progress: demo)
    assert cli.main(["averages", "--n", "3", "--experts-at", "last_subject", "--min-drop", "all", "--no-cache"]) == 0
    chosen = choose(FactSet(n=3), facts.bundled())
    result = derive(demo, experts_request(TraceRequest(NOBODY), chosen, role=LAST_SUBJECT))
    top = tables.expert_table(result, min_drop=None).iloc[0]
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].startswith(top["name"]) and f"{top.n_active} of {top.n} facts" in lines[3]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--n", "0"], "--n is '0'"), (["--n", "x"], "--n is 'x'"), (["--min-drop", "x"], "--min-drop is 'x'"),
        (["--window", "0"], "window is 0"), (["--relation", "none"], "There is no fact of relation none"),
        (["--experts-at", "further", "--site", "moe"], "--experts-at goes with neither"),
        (["--facts", "missing.csv"], "missing.csv"), (["--out", "x.txt"], "x.txt"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_said_before_a_model_is_loaded(arguments, words, monkeypatch, capsys):
    monkeypatch.setattr(cli_options, "load", None)
    assert cli.main(["averages", *arguments]) == 2
    assert words in capsys.readouterr().err
