"""The sections of the Routing page but the comparison: frequency and load, relations, co-activation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import streamlit as st

from core import routing_charts as charts
from core.derived import DerivedResult
from core.formats import bits, bits_change, count, mean_count
from core.formats import lift as as_lift
from core.picture import Picture
from core.routing_kinds import PERMUTATIONS, routed_of
from core.routing_link import CHANGE, CORRUPT
from core.routing_sets import co_activation_table, expected_unused, random_lift, relation_table, wide_table

from . import address, listing, numbers, pictures, present, text
from .listing import Column
from .routing_shown import CLASS_WORDS, Shown, chosen_expert, divergence_words, header
from .routing_state import look

# -- frequency and load ----------------------------------------------------------------------------------------------


def _wide(result: DerivedResult, position_class: str) -> pd.DataFrame:
    return wide_table(result.tables["frequency"], position_class)


def _frequency_map(table: pd.DataFrame, run: str, **options: Any) -> Picture:
    tips = charts.frequency_tips(table)
    title = {CHANGE: "frequency, corrupt − clean"}.get(run, f"frequency ({run})")
    return charts.expert_map(
        pd.concat([table.assign(value=table[run]), tips], axis=1), title=title, tips=list(tips), signed=run == CHANGE,
        **options,
    )  # fmt: skip


def _frequency_bars(table: pd.DataFrame, layer: int, **options: Any) -> Picture:
    mine = table[table.layer == layer].reset_index(drop=True)
    return charts.frequency_bars(mine, layer=layer, **options)


def _load_lines(result: DerivedResult, position_class: str, **options: Any) -> Picture:
    table = result.tables["load"]
    return charts.load_lines(table[table.position_class == position_class], **options)


def _clean_corrupt(result: DerivedResult, position_class: str, **options: Any) -> Picture:
    table = result.tables["clean_corrupt"]
    return charts.divergence_layers(table[table.position_class == position_class], **options)


def frequency(shown: Shown) -> None:
    view, result = shown.view, shown.result
    table = numbers.of("expert frequency", _wide, result, view.position_class)
    if table is None:
        return
    header(f"Expert frequency: {shown.where}", "routing-frequency", shown, "expert", _frequency_map, view.run,
           n_layers=shown.n_layers, n_experts=shown.n_experts, table=table, source=table,
           expert=view.expert)  # fmt: skip
    present.caption(f"{_cells(shown, table)} Click a cell to look at an expert.")
    mine = table[table.layer == shown.layer]
    header(f"Experts of layer {shown.layer}: {CLASS_WORDS[view.position_class]}", "routing-bars", shown,
           "expert", _frequency_bars, shown.layer, n_experts=shown.n_experts, table=mine, source=table,
           expert=view.expert, framed=False)  # fmt: skip
    present.caption("Dashed: where every expert would be if the load were even. Click a bar to look at an expert.")
    chosen_expert(shown)
    _load(shown)
    if shown.has_corrupt:
        _changed(shown)


def _cells(shown: Shown, table: pd.DataFrame) -> str:
    """What a cell of the frequency map says."""
    view, prompts = shown.view, shown.result.values["n_prompts"]
    of = f"{CLASS_WORDS[view.position_class]} of {text.amount(prompts, 'prompt')}"
    if view.run == CHANGE:
        return (
            f"Each cell: frequency in the corrupt runs − frequency in the clean runs ({of}). Blue: routed more often "
            "with the subject corrupted, orange: less often."
        )
    tokens = int(table[f"{view.run}_tokens"].iloc[0])
    share = f"share of {tokens:,} tokens" if tokens > 1 else "one token"
    return f"Each cell: the {share} ({of}, {view.run} runs) that is routed to the expert."


def _load(shown: Shown) -> None:
    view, result = shown.view, shown.result
    load = result.tables["load"]
    load = load[load.position_class == view.position_class].reset_index(drop=True)
    header(f"Load entropy: {CLASS_WORDS[view.position_class]}", "routing-load", shown, "layer", _load_lines,
           view.position_class, table=load, expert=None, framed=False)  # fmt: skip
    tokens, k = int(load.tokens.iloc[0]), result.values["top_k"]
    chance = expected_unused(shown.n_experts, k, tokens)
    present.caption(
        "Entropy of the layer's load ÷ log₂(experts): 1 if all experts share alike, 0 if one takes everything. "
        f"Unused: routed for no token of the class. With {text.amount(tokens, 'token')} and "
        f"{text.amount(k, 'expert')} each, even random choices would leave about {mean_count(chance)} of "
        f"{shown.n_experts} unused."
    )
    columns = {
        "layer": Column("layer"),
        "run": Column("run"),
        "load_entropy": Column("load entropy"),
        "unused": Column("unused experts", "Routed for no token."),
        "unused_names": Column("which", width="medium"),
        "busiest": Column("busiest expert"),
        "busiest_frequency": Column("its frequency"),
        "tokens": Column("tokens"),
    }
    listing.show(load, columns, most=330, alt="Load of every layer")


def _changed(shown: Shown) -> None:
    view = shown.view
    table = shown.result.tables["clean_corrupt"]
    table = table[table.position_class == view.position_class].reset_index(drop=True)
    header(f"Clean against corrupt: {CLASS_WORDS[view.position_class]}", "routing-clean-corrupt", shown,
           "layer", _clean_corrupt, view.position_class, table=table, expert=None, framed=False)  # fmt: skip
    chance = f"if clean and corrupt traded places at random within each prompt ({PERMUTATIONS} times)"
    present.caption(divergence_words(chance))


# -- relations ------------------------------------------------------------------------------------------------------


def _relations(result: DerivedResult, run: str, position_class: str, layer: int) -> pd.DataFrame:
    return relation_table(pictures.kept(routed_of, result), run, position_class, layer)


def _information(result: DerivedResult, run: str, position_class: str) -> pd.DataFrame:
    table = result.tables["information"]
    return table[(table.run == run) & (table.position_class == position_class)].reset_index(drop=True)


def _information_map(result: DerivedResult, run: str, position_class: str, n_layers: int, **options: Any) -> Picture:
    table = _information(result, run, position_class)
    tips = pd.DataFrame({
        "t_expert": table["name"],
        "t_information": [f"{bits(v)} bits" for v in table.information],
        "t_permutation_baseline": [
            f"{bits(mean)} on average, 95 % below {bits(high)}"
            for mean, high in zip(table.baseline, table.high, strict=True)
        ],
        "t_above_the_baseline": [f"{bits_change(v)} bits" for v in table.above_baseline],
    })  # fmt: skip
    return charts.expert_map(
        pd.concat([table.assign(value=table.above_baseline), tips], axis=1), n_layers=n_layers,
        n_experts=result.values["n_experts"], title="above the baseline (bits)", tips=list(tips), signed=True,
        **options,
    )  # fmt: skip


def relations(shown: Shown) -> None:
    view = shown.view
    information = pictures.kept(_information, shown.result, view.run, view.position_class)
    by_relation = numbers.of(
        "frequency by relation", _relations, shown.result, view.run, view.position_class, shown.layer
    )
    if by_relation is None:
        return
    if by_relation.empty:
        st.info("These prompts have no relations.", icon=":material/info:")
        return
    header(f"Information about the relation: {shown.where}", "routing-information", shown, "expert", _information_map,
           view.run, view.position_class, shown.n_layers, table=information, expert=view.expert,
           there=not information.empty)  # fmt: skip
    if information.empty:
        all_positions = view.position_class == "all"
        why = "Choose a position class other than all." if all_positions else "There is one relation only."
        st.info(f"No information is counted here. {why}", icon=":material/info:")
    else:
        _informed(shown, information)
    header(f"Frequency by relation: layer {shown.layer}, {shown.where}", "routing-relations", shown, "expert",
           charts.relation_map, layer=shown.layer, n_experts=shown.n_experts, table=by_relation, source=by_relation,
           expert=view.expert, framed=False)  # fmt: skip
    present.caption(
        "Each row: the facts of a relation, n of them; each cell: the share of their tokens routed to the expert. "
        "Click a cell to look at an expert."
    )
    chosen_expert(shown)


def _informed(shown: Shown, table: pd.DataFrame) -> None:
    facts, kinds = int(table.facts.iloc[0]), int(table.relations.iloc[0])
    above = int((table.information > table.high).sum())
    token = "one of the fact's other tokens" if shown.view.position_class == "others" else "the fact's token"
    present.caption(
        f"Mutual information between the relation ({kinds} of them, {count(facts)} facts) and whether {token} is "
        "routed to the expert, minus its permutation baseline. Counting alone finds some information in pure chance: "
        f"the baseline is the mean of {PERMUTATIONS} random permutations of the relations. {above} of "
        f"{count(len(table))} experts lie above the 95th percentile of theirs; about {count(0.05 * len(table))} would "
        "by chance."
        + (" Of the corrupt runs the first draw counts." if shown.view.run == CORRUPT else "")
    )
    top = table.sort_values("above_baseline", ascending=False, kind="stable", ignore_index=True)
    slot = pictures.slot("routing-informed", (shown.result.request, shown.view.run, shown.view.position_class), None)
    columns = {
        "name": Column("expert"),
        "information": Column("information", "Bits, from the counts."),
        "baseline": Column("baseline", "Mean over the permutations."),
        "high": Column("95 % of chance", "Their 95th percentile."),
        "above_baseline": Column("above the baseline", "Bits."),
    }
    listing.show(
        top, columns, most=250, key=slot.key, alt="Experts by what they say about the relation",
        on_select=address.callback(slot.key, lambda: _ticked(slot, top)), selection_mode="single-row",
    )  # fmt: skip


def _ticked(slot: pictures.Slot, table: pd.DataFrame) -> None:
    rows = address.ticked(slot.key)
    if rows:
        look(layer=int(table.layer[rows[0]]), expert=int(table.expert[rows[0]]), fact=None)


# -- co-activation --------------------------------------------------------------------------------------------------


def _pairs(result: DerivedResult, run: str, position_class: str, layer: int) -> pd.DataFrame:
    table = co_activation_table(pictures.kept(routed_of, result), run, position_class, layer)
    return table.assign(reference=random_lift(result.values["n_experts"], result.values["top_k"]))


def co_activation(shown: Shown) -> None:
    view = shown.view
    k = shown.result.values["top_k"]
    if k < 2:
        st.info("Each token goes to one expert of a layer, so no two serve the same token.", icon=":material/info:")
        return
    table = numbers.of("co-activation", _pairs, shown.result, view.run, view.position_class, shown.layer)
    if table is None:
        return

    def pick(mark: dict[str, int]) -> None:
        look(layer=shown.layer, expert=mark["expert"], fact=None)

    header(f"Co-activation at layer {shown.layer}: {shown.where}", "routing-pairs", shown, "pair", charts.pair_map,
           layer=shown.layer, n_experts=shown.n_experts, table=table, source=table, expert=view.expert, framed=False,
           on_pick=pick)  # fmt: skip
    lift = random_lift(shown.n_experts, k)
    present.caption(
        "Lift = tokens routed to both ÷ expected, where expected = frequency × frequency × tokens. A token's choices "
        f"exclude each other, so random choices of {k} among {shown.n_experts} have lift {as_lift(lift)}: blue pairs "
        "serve the same tokens more often than that, orange ones less. Blank: fewer than one token expected. Click a "
        "cell to look at its column's expert."
    )
    columns = {
        "name": Column("expert"),
        "other_name": Column("and"),
        "together": Column("tokens with both"),
        "expected": Column("expected", "If chosen independently."),
        "lift": Column("lift", "Tokens with both ÷ expected."),
        "frequency": Column("its frequency"),
        "other_frequency": Column("the other's"),
        "tokens": Column("tokens"),
    }
    listing.show(table, columns, most=320, alt="Pairs of experts")
    chosen_expert(shown)


SECTIONS: dict[str, Callable[[Shown], None]] = {
    "frequency": frequency,
    "relations": relations,
    "co-activation": co_activation,
}
