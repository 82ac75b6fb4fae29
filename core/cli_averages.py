"""The command `averages`: role-averaged maps over many facts, of a site or of the experts at a role.

Arguments → a `DerivedRequest` → `core.averages` → tables and a summary. A stored answer needs no model.
"""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any

from .averages.questions import SHOWN_ROLES, cells_request, experts_request
from .cli_lists import FACTS_HELP, facts_of
from .cli_options import answered, method_options, model_options, template
from .console import say
from .errors import InputError
from .fact_sets import BUNDLED, FactSet, choose
from .named_rows import named_rows
from .requests import Fact
from .roles import BEFORE
from .sites import MOE, SITES

if TYPE_CHECKING:
    import pandas as pd

    from .derived import DerivedRequest, DerivedResult

EPILOG = """\
  python -m core averages --n 64 --out roles.csv
  python -m core averages --site attention --window 10 --relation capital language --out roles.parquet
  python -m core averages --experts-at last_token --model allenai/OLMoE-1B-7B-0924 --facts counterfact.json --out e.csv
Sites: moe, attention, layer (both), residual. Several tokens of one role in one fact are averaged first, then the
facts. Restoration is mean rescue ÷ mean drop. Intervals: 95 % percentile bootstrap over subjects.
"""
ALL = "all"
_SHOWN = 10
"""Facts that are left out, and experts, so many of them are named."""


def add_averages(commands: Any) -> None:
    """The parser of the `averages` command."""
    averages = commands.add_parser(
        "averages",
        help="averages over many facts, by role and layer",
        description="Restore a site at every layer and position of many facts (or every expert at one role), and "
        "average by the role of the position: first, middle and last subject token, further tokens, last token.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    averages.set_defaults(run=run_averages)
    model_options(averages.add_argument_group("model"))
    facts = averages.add_argument_group("facts")
    facts.add_argument("--facts", metavar="FILE", help=f"{FACTS_HELP} (the bundled ones)")
    facts.add_argument("--relation", nargs="+", default=(), metavar="ID", help="only facts of these relations")
    facts.add_argument("--n", default="64", metavar="N", help="so many facts, or all (64)")
    facts.add_argument("--facts-seed", type=int, default=0, metavar="N", help="seed of the choice of the n facts (0)")
    facts.add_argument(
        "--min-drop", default="0.5", metavar="X", help="leave out facts with a smaller drop, in logits; or all (0.5)"
    )
    what = averages.add_argument_group("what is restored")
    what.add_argument("--site", choices=SITES, help="moe, attention, layer (both) or residual (moe)")
    what.add_argument("--window", type=int, metavar="W", help="on so many layers around each (1)")
    what.add_argument(
        "--experts-at", metavar="ROLE", choices=[_option(role) for role in SHOWN_ROLES],
        help=f"instead: every expert's patch at one role: {', '.join(_option(role) for role in SHOWN_ROLES)}",
    )  # fmt: skip
    method_options(averages)
    output = averages.add_argument_group("output")
    output.add_argument("--out", metavar="FILE", help="write the averages: .parquet, .csv or .json")
    output.add_argument("--each", metavar="FILE", help="write every fact's own values: .parquet, .csv or .json")
    output.add_argument("--no-cache", action="store_true", help="neither read nor write the store")


def run_averages(arguments: argparse.Namespace) -> int:
    """The `averages` command."""
    from .tables import check_out, write_table

    out = check_out(arguments.out) if arguments.out is not None else None
    each = check_out(arguments.each) if arguments.each is not None else None
    min_drop = _min_drop(arguments.min_drop)
    request = request_of(arguments)
    result = answered(request, no_cache=arguments.no_cache)

    from . import export
    from .averages import tables

    _say_left_out(tables.left_out(result, min_drop=min_drop), len(request.facts))
    counted = tables.count(result, min_drop=min_drop)
    if not counted.kept:
        raise InputError("None of the facts is left to average.", "Choose others, or a smaller --min-drop.")
    experts = arguments.experts_at is not None
    table = (tables.expert_table if experts else tables.role_table)(result, min_drop=min_drop)
    print(tables.facts_in_words(counted, min_drop=min_drop))
    print("\n".join(_experts(table) if experts else _roles(table)))
    for path, wanted in ((out, table), (each, _each(result, experts, min_drop) if each else None)):
        if path is not None and wanted is not None:
            write_table(wanted, path, metadata=export.origin(result))
            print(f"{len(wanted):,} rows written to {path}")
    return 0


def request_of(arguments: argparse.Namespace) -> DerivedRequest:
    """What the arguments ask. Raises `InputError` for what cannot be asked."""
    if arguments.experts_at is not None and (arguments.site is not None or arguments.window is not None):
        raise InputError("--experts-at goes with neither --site nor --window.", "Give one or the other.", field="site")
    asked, facts = template(arguments, experts="none"), _facts(arguments)
    if arguments.experts_at is not None:
        role = next(role for role in SHOWN_ROLES if _option(role) == arguments.experts_at)
        return experts_request(asked, facts, role=role)
    window = 1 if arguments.window is None else arguments.window
    return cells_request(asked, facts, site=arguments.site or MOE, window=window)


def _each(result: DerivedResult, experts: bool, min_drop: float | None) -> pd.DataFrame:
    """Every value of every fact that counts, with what the fact is."""
    from .averages import tables

    facts = tables.kept_facts(result, min_drop=min_drop).reset_index(drop=True)
    values = result.tables["experts" if experts else "cells"]
    return values.merge(facts, on="fact").sort_values(list(values.columns[:3]), ignore_index=True)


def _facts(arguments: argparse.Namespace) -> tuple[Fact, ...]:
    n: int | None = None
    if arguments.n != ALL:
        if not (arguments.n.isascii() and arguments.n.isdigit() and 0 < int(arguments.n) < 10**9):
            raise InputError(f"--n is {arguments.n!r}.", "Give a number from 1, or all.", field="n")
        n = int(arguments.n)
    known = facts_of(BUNDLED if arguments.facts is None else arguments.facts)
    chosen = choose(FactSet(relations=tuple(arguments.relation), n=n, seed=arguments.facts_seed), known)
    if not chosen:
        relations = sorted({fact.relation for fact in known if fact.relation})
        raise InputError(
            f"There is no fact of relation {', '.join(arguments.relation)}." if arguments.relation else "No facts.",
            f"The list has: {', '.join(relations[:40])}." if relations else "", field="relation",
        )  # fmt: skip
    return chosen


def _min_drop(text: str) -> float | None:
    if text == ALL:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"--min-drop is {text!r}.", "Give a number of logits, or all.", field="min_drop")
    return value


def _option(role: str) -> str:
    return role.replace(" ", "_")


def _say_left_out(left_out: pd.DataFrame, total: int) -> None:
    if left_out.empty:
        return
    say(f"{len(left_out)} of {total} facts are left out:")
    for row in named_rows(left_out.head(_SHOWN)):
        say(f"  case_id {row.case_id}: {row.why}")
    if len(left_out) > _SHOWN:
        say(f"  … and {len(left_out) - _SHOWN} more")


def _roles(table: pd.DataFrame) -> list[str]:
    """Where each role's layers restore most."""
    rows = [["role", "layer", "restoration", "rescue", "facts"]]
    for role, its in table[table.n > 0].groupby("role", sort=False):
        if role != BEFORE:
            best = its.loc[its.rescue.idxmax()]
            rows.append([str(role), f"L{best.layer}", *_numbers(best), str(best.n)])
    return ["Where each role restores most:", *_columns(rows)]


def _experts(table: pd.DataFrame) -> list[str]:
    from .formats import logits

    rows = [["expert", "restoration", "rescue", "active only", "clean-active in"]]
    for row in named_rows(table.head(_SHOWN)):
        active = logits(row.rescue_active)
        rows.append([row.name, *_numbers(row), active, f"{row.n_active} of {row.n} facts"])
    return [f"The experts that restore most, of {len(table):,} that are clean-active in any fact:", *_columns(rows)]


def _numbers(row: Any) -> tuple[str, str]:
    from .formats import logits, restoration

    low, high = logits(row.rescue_low), logits(row.rescue_high)
    return restoration(row.restoration), f"{logits(row.rescue)} [{low}, {high}]"


def _columns(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
