"""Hand-made studies with a known answer: routing and rescues are given by functions, rows follow the protocol.

A world says which experts a fact is routed to and what a set of experts rescues; `study` writes the rows that an
engine would, through the same plans that the engine follows.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pandas as pd

from core.study import coalitions, controls, selection, split
from core.study import rows as table

Routing = Callable[[int, int], dict[int, float]]
Rescue = Callable[[int, int, frozenset[int]], float]


@dataclass
class World:
    """`routing(fact, layer)` → clean router weights; `rescue(fact, layer, experts)` → logits, without noise."""

    routing: Routing
    rescue: Rescue
    n: int = 48
    layers: int = 3
    relations: int = 6
    draws: int = 1
    noise: float = 0.05
    drop: float = 5.0
    settings: dict = field(default_factory=dict)

    def subject(self, fact: int) -> str:
        return f"subject {fact}"


def study(world: World, *, joint: bool = True) -> pd.DataFrame:
    """All rows of a study of `world`."""
    options = {"split_seed": 0, "by_subject": False, "recurrence": 0.5, "share": 0.8} | world.settings
    half = split.halves(
        [world.subject(f) for f in range(world.n)], split_seed=options["split_seed"], by_subject=options["by_subject"]
    )

    def row(
        fact, kind, layer, experts: Iterable[int] | None = None, *, expert=None, draw=0, stage=table.MAIN, level=3.0
    ):
        scale = level / 3.0
        rng = random.Random(f"{fact} {kind} {layer} {sorted(experts or [])} {expert} {draw} {stage}")
        members = frozenset(world.routing(fact, layer) if experts is None and expert is None else experts or {expert})
        rescue = scale * world.rescue(fact, layer, members) + rng.gauss(0, world.noise)
        weights = world.routing(fact, layer)
        return {
            "scan_index": fact, "case_id": 100 + 7 * fact, "relation": f"P{fact % world.relations}",
            "subject": world.subject(fact), "split": half[fact], "draw": draw, "noise": level, "stage": stage,
            "kind": kind, "layer": layer, "pos": 6, "expert": expert,
            "experts": table.members(experts) if experts is not None else None,
            "clean_active": None if expert is None else expert in weights,
            "router_weight_clean": weights.get(expert), "clean_contrast": 6.0,
            "corrupt_contrast": 6.0 - scale * world.drop + 0.1 * draw, "rescue": rescue,
        }  # fmt: skip

    facts, draws = range(world.n), range(world.draws)
    found = [row(f, table.LAYER, la, draw=d) for f in facts for la in range(world.layers) for d in draws]
    rows = table.table(found)
    layer = selection.best_layer(rows)
    for la in range(world.layers) if joint else [layer]:
        found += [
            row(f, table.EXPERT, la, expert=e, draw=d) for f in facts for e in world.routing(f, la) for d in draws
        ]
    rows = table.table(found)
    expert = selection.choose_expert(rows, layer=layer, recurrence=options["recurrence"]).expert
    found += [
        row(p.scan_index, table.MINIMAL, layer, coalitions.parse(p.experts), draw=d, stage=table.COALITION_SEARCH)
        for p in coalitions.search_plan(rows, layer=layer).itertuples()
        for d in draws
    ]
    validation = [f for f in facts if half[f] == table.VALIDATION]
    chosen = coalitions.choose(table.table(found), layer=layer, share=options["share"])
    found += [
        row(p.scan_index, p.kind, layer, coalitions.parse(p.experts), draw=d)
        for p in coalitions.plan(rows, chosen, layer=layer).itertuples()
        for d in draws
    ]
    found += [row(f, table.ROUTING_UNION, layer, world.routing(f, layer), draw=d) for f in validation for d in draws]
    if expert is not None:
        for f in validation:
            partner = controls.gate_matched(world.routing(f, layer), expert)
            if partner is not None:
                for d in draws:
                    found += [row(f, table.EQUAL_NORM_SELECTED, layer, expert=expert, draw=d)]
                    found += [row(f, table.EQUAL_NORM_CONTROL, layer, expert=partner, draw=d)]
    for stage, level in [(table.FRESH_DRAW, 3.0)] + [(table.noise_stage(v), v) for v in (1.0, 2.0, 4.0)]:
        for f in validation:
            found.append(row(f, table.LAYER, layer, stage=stage, level=level))
            wanted = world.routing(f, layer) if stage == table.FRESH_DRAW else {expert} & set(world.routing(f, layer))
            found += [row(f, table.EXPERT, layer, expert=e, stage=stage, level=level) for e in wanted]
    rows = table.table(found)
    extra = [
        controls.control_rows(rows, layer=layer, expert=expert, stage=stage) for stage in (table.MAIN, table.FRESH_DRAW)
    ]
    return pd.concat([rows, *extra], ignore_index=True)


def routed(
    fact: int, layer: int, *, always: Iterable[int] = (), n_experts: int = 12, top_k: int = 4
) -> dict[int, float]:
    """`always` and then random others, weights falling from first to last."""
    rng = random.Random(f"{fact} {layer}")
    always = list(always)
    others = rng.sample([e for e in range(n_experts) if e not in always], top_k - len(always))
    return {e: 0.4 - 0.07 * i for i, e in enumerate([*always, *others])}


def one_expert(**changes) -> World:
    """Layer 1: expert 5, active in three facts of four, rescues 2 logits; nobody else rescues anything."""
    return World(
        lambda f, la: routed(f, la, always=[5] if la == 1 and f % 4 else []),
        lambda f, la, members: 2.0 if la == 1 and 5 in members else 0.0,
        **changes,
    )


def pair(top_k: int = 4, **changes) -> World:
    """Layer 2: experts 3 and 8 are always active and rescue 2 logits together, nothing alone."""
    return World(
        lambda f, la: routed(f, la, always=[3, 8] if la == 2 else [], top_k=top_k),
        lambda f, la, members: 2.0 if la == 2 and {3, 8} <= members else 0.0,
        **changes,
    )


def each_its_own(**changes) -> World:
    """Layer 0: every fact has an expert of its own, of 64, that rescues 2 logits."""
    return World(
        lambda f, la: routed(f, la, always=[f % 64] if la == 0 else [], n_experts=64),
        lambda f, la, members: 2.0 if la == 0 and f % 64 in members else 0.0,
        **changes,
    )


def nothing(**changes) -> World:
    """No MoE block rescues anything."""
    return World(lambda f, la: routed(f, la), lambda f, la, members: 0.0, **changes)
