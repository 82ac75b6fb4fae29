"""The `compare` command: the two questions of a link of the Compare page, what changed between them, as tables."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .cli_options import load, open_store
from .console import TerminalProgress, visible
from .errors import ExpertScopeError, InputError
from .named_rows import named_rows

if TYPE_CHECKING:
    from .compare.tables import Compared
    from .derived import DerivedRequest, DerivedResult
    from .links import Link
    from .results import TraceResult

EPILOG = """\
The link's parameters are those of the Trace page, prefixed a. and b.; of b only what differs has to be said.

  python -m core compare 'a.model=demo&a.fact=17&b.noise=1'
  python -m core compare 'a.model=demo&a.fact=17&b.site=attention&b.window=3'
  python -m core compare 'http://localhost:8501/Compare?a.model=demo&a.fact=17&b.fact=18' --out cells.csv
"""


def add_compare(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "compare",
        help="two traces side by side",
        description="Trace two questions and say what changed from the one to the other.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_argument("link", metavar="LINK", help="a link of the Compare page, or its parameters")
    command.add_argument("--out", metavar="FILE", help="write the compared cells: .parquet, .csv or .json")
    command.add_argument("--no-cache", action="store_true", help="neither read nor write the store")
    command.set_defaults(run=run_compare)


def run_compare(arguments: argparse.Namespace) -> int:
    """The `compare` command."""
    from . import facts
    from .compare.link import from_text
    from .compare.tables import Compared
    from .tables import check_out, provenance, write_table

    out = check_out(arguments.out) if arguments.out is not None else None
    known = {fact.case_id: fact for fact in facts.bundled()}
    pair = from_text(arguments.link, bundled=known.get, default=next(iter(known.values())))
    progress = TerminalProgress()
    try:
        with open_store(arguments.no_cache) as store:
            (a, at_a), (b, at_b) = _answered([pair.a, pair.b], store, progress)
    finally:
        progress.close()
    compared = Compared(a, b, pair.same_model, at_a, at_b)
    if out is not None and compared.no_cells:
        raise InputError(f"There is no table to write. {compared.no_cells}", "Leave --out out.", field="out")
    print(summary(compared))
    if out is not None:
        write_table(compared.cells, out, metadata=provenance([a, b]))
        print(f"{len(compared.cells):,} cells written to {out}")
    return 0


def summary(compared: Compared) -> str:
    """What changed, in sentences and a table, and the routing agreement of each layer."""
    from .compare import words
    from .report import columns

    headings, rows, _ = words.numbers(compared)
    lines = [visible(line) for line in words.sentences(compared)]
    lines += ["", *columns(headings, rows)]
    if not compared.no_routing:
        cells = [
            [f"L{r.layer}", f"{r.same:.0%} of {r.positions}", f"{r.jaccard:.3f}"]
            for r in named_rows(compared.routing_layers)
        ]
        lines += ["", *columns(["layer", "same set of experts", "mean Jaccard"], cells)]
    return "\n".join(lines)


def _answered(
    links: list[Link], store: Any, progress: TerminalProgress
) -> list[tuple[TraceResult, DerivedResult | None]]:
    """Both traces, and what their layer × token maps show if that is another site; from the store where it has them;
    one model is loaded at a time."""
    from . import derived
    from .cells.asking import ask_map
    from .trace import from_store, trace_many

    requests, views = [link.request for link in links], [link.view for link in links]
    found = [None if store is None else from_store(store, request) for request in requests]
    maps: list[DerivedResult | None] = [None for _ in links]

    def asked(i: int) -> DerivedRequest | None:
        """The question about the map of a trace that is there."""
        view = views[i]
        return None if view.is_base else ask_map(requests[i], view.site, view.window, found[i].provenance.n_layers)

    for i, result in enumerate(found):
        if result is not None and (one := asked(i)) is not None:
            maps[i] = derived.from_store(store, one)
    open_ = [i for i in range(len(links)) if found[i] is None or (not views[i].is_base and maps[i] is None)]
    for spec in dict.fromkeys(requests[i].model for i in open_):
        mine = [i for i in open_ if requests[i].model == spec]
        with _named(" and ".join("ab"[i] for i in mine)):
            model = load(spec, store, progress)
            answers = trace_many(model, [requests[i] for i in mine], store=store, progress=progress)
            for i, result in zip(mine, answers, strict=True):
                found[i] = result
                if (one := asked(i)) is not None:
                    maps[i] = derived.derive(model, one, store=store, progress=progress)
            del model
    return list(zip(found, maps, strict=True))  # type: ignore[arg-type]


@contextlib.contextmanager
def _named(sides: str) -> Iterator[None]:
    """An error inside says whose it is."""
    try:
        yield
    except ExpertScopeError as error:
        error.what = f"{sides}: {error.what}"
        raise
