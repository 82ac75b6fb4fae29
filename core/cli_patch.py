"""The commands `patch` and `minimal`: interventions asked for one by one, and the smallest set that restores a fact.

Arguments → `TraceRequest`s → `core.patching` or `core.minimal` → a table and a summary.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli_facts import Sieve
from .cli_options import fact_options, load, open_store, template
from .console import TerminalProgress
from .errors import InputError
from .requests import SCORES

if TYPE_CHECKING:
    from .prompts import PreparedFact

PATCH_EPILOG = """\
FILE is a list such as
  [{"name": "window",   "run": "corrupt", "steps": [{"site": "moe", "layer": [2, 3], "pos": "last",
                                                     "restore": "clean"}]},
   {"name": "pair",     "run": "corrupt", "steps": [{"site": "moe", "layer": 3, "pos": "last", "experts": [1, 7]}]},
   {"name": "knockout", "run": "clean",   "steps": [{"site": "moe", "layer": 3, "pos": "all", "experts": [1],
                                                     "knockout": "zero"}]}]
Sites: moe, attention, layer (both), residual. Positions: last, last_subject, all, or token indices. restore: clean or
corrupt. knockout: zero or reroute. Beside numbers, experts may name shared, clean_top_k and routing_union (all experts
active in the clean run; in either). "experts": [1] with "equal_norm_with": [7]: the update of expert 1, scaled down to
the norm of expert 7's where that is smaller. Steps at one layer and position: knockouts first, then the block's output
in the order of the file, then the residual.
"""


def add_patch(commands: Any) -> None:
    """The parser of the `patch` command."""
    patch = commands.add_parser(
        "patch",
        help="any interventions, from a file",
        description="Run the interventions of a file: restore, add, knock out; one row per fact, patch and draw.",
        epilog=PATCH_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    patch.set_defaults(run=run_patch)
    fact_options(patch)
    output = patch.add_argument_group("patches and output")
    output.add_argument("--patches", required=True, metavar="FILE", help="JSON list of patches")
    output.add_argument(
        "--score", default="contrast", choices=SCORES, help="what rescue and restoration are measured in (contrast)"
    )
    output.add_argument("--out", metavar="FILE", help="write the table: .parquet, .csv or .json")
    output.add_argument("--no-cache", action="store_true", help="do not use the store (load-time checks run again)")


def add_minimal(commands: Any) -> None:
    """The parser of the `minimal` command."""
    minimal = commands.add_parser(
        "minimal",
        help="the smallest set of experts that restores a fact",
        description="Greedily the fewest clean-active experts whose updates, added together in the corrupt run, "
        "restore a fact; beside it random sets of the same sizes. Without --layer and --pos: of the whole model.",
        allow_abbrev=False,
    )
    minimal.set_defaults(run=run_minimal)
    fact_options(minimal)
    search = minimal.add_argument_group("search")
    search.add_argument("--layer", type=int, metavar="N", help="only this layer's experts")
    search.add_argument("--pos", metavar="WHERE", help="only at this position: last, last_subject or a token index")
    search.add_argument("--target", type=float, default=0.8, metavar="X", help="the restoration to reach (0.8)")
    search.add_argument("--steps", type=int, default=16, metavar="N", help="at most so many experts (16)")
    search.add_argument("--random", type=int, default=20, metavar="N", help="random sets of each size (20)")
    output = minimal.add_argument_group("output")
    output.add_argument("--out", metavar="FILE", help="write the curve: .parquet, .csv or .json")
    output.add_argument("--no-cache", action="store_true", help="do not use the store (load-time checks run again)")


def run_minimal(arguments: argparse.Namespace) -> int:
    """The `minimal` command."""
    from .tables import check_out

    out = check_out(arguments.out) if arguments.out is not None else None
    pos = _position(arguments.pos)
    asked = template(arguments, experts="none")
    progress = TerminalProgress()
    sieve = Sieve(arguments, progress)
    try:
        from .minimal import Search, minimal_many

        search = Search(arguments.layer, pos, arguments.target, arguments.steps, arguments.random)
        with open_store(arguments.no_cache) as store:
            model = load(asked.model, store, progress)
            requests = sieve.tokenised(model, asked, lambda fact: search.check(model, fact))
            results = minimal_many(model, requests, search, progress=progress)
    finally:
        progress.close()
    return _write(results, out, "minimal_summary")


def _position(text: str | None) -> int | str | None:
    if text is None or text in ("last", "last_subject"):
        return text
    if text.isascii() and text.isdigit() and len(text) < 7:
        return int(text)
    raise InputError(f"--pos is {text!r}.", "Choose last, last_subject, or a token index from 0.", field="pos")


def _write(results: list[Any], out: Path | None, summary: str) -> int:
    """The table into its file, the summary to stdout."""
    from . import report
    from .tables import long_table, provenance, write_table

    table = long_table(results)
    if out is not None:
        write_table(table, out, metadata=provenance(results))
    print(getattr(report, summary)(results))
    if out is not None:
        print(f"{len(table):,} rows written to {out}")
    return 0


def run_patch(arguments: argparse.Namespace) -> int:
    """The `patch` command."""
    from .patch_file import build, check_choice, check_shape, read_patches
    from .tables import check_out

    out = check_out(arguments.out) if arguments.out is not None else None
    specs = read_patches(arguments.patches)
    asked = template(arguments, experts="none")
    progress = TerminalProgress()
    sieve = Sieve(arguments, progress)
    try:
        from .patching import patch_many, shape_of

        with open_store(arguments.no_cache) as store:
            model = load(asked.model, store, progress)
            shape = shape_of(model)
            check_shape(specs, shape)

            def fits(prepared: PreparedFact) -> None:
                for spec in specs:
                    place = {"n_tokens": len(prepared.input_ids), "last_subject": prepared.subject_positions[-1]}
                    check_choice(spec, build(spec, **place, clean=0, corrupt=1), shape)

            requests = sieve.tokenised(model, asked, fits)
            results = patch_many(model, requests, specs, score=arguments.score, progress=progress)
    finally:
        progress.close()

    return _write(results, out, "patches_summary")
