"""When one expert is routed: by relation and position class, at which tokens, in which prompts.

Pure counting over the clean runs of a `RoutedTokens`; knows no model, no charts, no page.
"""

from __future__ import annotations

import pandas as pd

from .expert_tables import NO_RELATION
from .roles import LAST, LAST_SUBJECT, ROLES
from .routed import RUNS
from .routing import RoutedTokens
from .routing_sets import of_expert

TOP_PROMPTS = 20


def routed_tokens(routed: RoutedTokens, layer: int, expert: int) -> pd.DataFrame:
    """Every token of the clean runs, with `routed` (to this expert) and `router_weight` (0 where not)."""
    tokens = routed.tokens
    out = tokens[tokens.run == RUNS[0]][["fact", "case_id", "relation", "subject", "pos", "role", "token_id", "token"]]
    out = out.astype({"relation": object, "subject": object, "role": object, "token": object})
    out["relation"] = out.relation.where(out.relation.notna(), NO_RELATION)
    weight = of_expert(routed, layer, expert).router_weight.reindex(out.index)
    out["routed"], out["router_weight"] = weight.notna(), weight.fillna(0.0).astype(float)
    return out.reset_index(drop=True)


def shares(tokens: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """How much of each group of `routed_tokens` goes to the expert: tokens, routed, share, mean router weight there."""
    grouped = tokens.groupby(by, sort=False)
    out = grouped.agg(tokens=("routed", "size"), routed=("routed", "sum"), _weight=("router_weight", "sum"))
    out = out.reset_index()
    out["share"] = out.routed / out.tokens
    out["mean_weight"] = out._weight / out.routed.where(out.routed > 0)
    out = out.drop(columns="_weight")
    if "role" in by:
        order = {role: i for i, role in enumerate(ROLES)}
        return out.sort_values("role", key=lambda roles: roles.map(order), ignore_index=True, kind="stable")
    return out.sort_values(["share", *by], ascending=[False, *[True] * len(by)], ignore_index=True)


def frequent_tokens(tokens: pd.DataFrame) -> pd.DataFrame:
    """The pieces that it is routed at, most often first: how often, of how many occurrences, mean router weight."""
    out = shares(tokens, ["token_id", "token"])
    out = out[out.routed > 0].rename(columns={"tokens": "occurrences"})
    return out.sort_values(["routed", "mean_weight"], ascending=False, ignore_index=True)


def top_prompts(tokens: pd.DataFrame, n: int = TOP_PROMPTS) -> pd.DataFrame:
    """The prompts with the largest router weight for this expert, each with the token that has it: `before`, `token`
    and `after` are the prompt's pieces."""
    mine = tokens[tokens.routed].sort_values(["router_weight", "fact", "pos"], ascending=[False, True, True])
    best = mine.drop_duplicates("fact").head(n)
    pieces = {fact: list(rows.token) for fact, rows in tokens[tokens.fact.isin(best.fact)].groupby("fact")}
    best = best.assign(
        before=["".join(pieces[fact][:pos]) for fact, pos in zip(best.fact, best.pos, strict=True)],
        after=["".join(pieces[fact][pos + 1 :]) for fact, pos in zip(best.fact, best.pos, strict=True)],
    )
    columns = ["case_id", "relation", "subject", "before", "token", "after", "pos", "role", "router_weight"]
    return best[columns].reset_index(drop=True)


def pieces(tokens: pd.DataFrame) -> dict[tuple[int, str], list[str]]:
    """The pieces of every prompt, by case_id and subject."""
    return {key: list(rows.token) for key, rows in tokens.groupby(["case_id", "subject"], sort=False)}


def clean_active(tokens: pd.DataFrame) -> dict[str, tuple[int, int]]:
    """(facts in which the expert is clean-active there, facts that have it) at the last position and at the last
    subject token (which is the last position where the subject ends there)."""
    last = tokens[tokens.role == LAST]
    at_subject = tokens[tokens.role == LAST_SUBJECT]
    ends = last[~last.fact.isin(at_subject.fact) & last.subject.notna()]
    at_subject = pd.concat([at_subject, ends])
    return {
        "last": (int(last.routed.sum()), len(last)),
        "last_subject": (int(at_subject.routed.sum()), len(at_subject)),
    }
