"""The command line: `python -m core trace …`, `patch …`, `minimal …`, `compare …`, `averages …`, `derive …`, `study …`
and `models`.

Arguments → `TraceRequest`s → the engine → a table and a summary. Results go to stdout, progress and messages to
stderr. Exit code 0, 2 for wrong input, 1 for a failure (130 when interrupted). Whatever is slow to import is imported
after the arguments proved right.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .cli_averages import add_averages
from .cli_compare import add_compare
from .cli_derive import add_derive
from .cli_facts import Sieve
from .cli_options import fact_options, load, open_store, template
from .cli_patch import add_minimal, add_patch
from .cli_study import add_study
from .console import TerminalProgress, say, tolerant, visible
from .errors import ExpertScopeError, InputError, OutOfMemory
from .quantisation import INT8_BYTES, described
from .requests import TraceRequest
from .room import ran_out

if TYPE_CHECKING:
    from .results import TraceResult

EPILOG = """\
A fact is typed in (--prompt, --subject, --true, --foil), taken from the bundled list (--fact N [N ...]), or many are
read from a file (--facts FILE; with --fact only those case_ids of it). Facts of a file that cannot be traced are left
out and named on stderr.

  python -m core trace --prompt "The capital of {} is" --subject France --true Paris --foil Rome
  python -m core trace --fact 17 --draws 10 --out fact17.parquet
  python -m core trace --model allenai/OLMoE-1B-7B-0924 --facts counterfact.json --foil auto --out all.csv
"""
DEBUG = "EXPERTSCOPE_DEBUG"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    tolerant(sys.stdout)
    tolerant(sys.stderr)
    try:
        arguments = parser().parse_args(argv)
        code = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except ExpertScopeError as error:
        return _fail(error.what, error.next, error.exit_code)
    except BrokenPipeError:
        # the reader of our output (say, `| head`) has seen enough; keep the interpreter from trying again at exit
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return _fail("Interrupted.", "What was finished is in the store (unless --no-cache).", 130)
    except Exception as error:  # noqa: BLE001 - the last resort of the command line
        if ran_out(error):
            full = OutOfMemory()
            return _fail(full.what, full.next, full.exit_code)
        return _defect(error)


def parser() -> argparse.ArgumentParser:
    """The argument parser; every subcommand sets `run`."""
    top = argparse.ArgumentParser(
        prog="python -m core",
        description="Expert-aware causal tracing of factual recall in sparse MoE language models.",
        allow_abbrev=False,
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    trace = commands.add_parser(
        "trace",
        help="trace one fact or many",
        description="Corrupt the subject, restore MoE outputs one by one, see what brings the answer back.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    trace.set_defaults(run=run_trace)

    fact_options(trace)
    trace.add_argument_group("experts").add_argument(
        "--experts", default="last", metavar="WHERE", help="expert patches at the last position, all, none, or at 3,5"
    )
    output = trace.add_argument_group("output")
    output.add_argument("--out", metavar="FILE", help="write the long table: .parquet, .csv or .json")
    output.add_argument("--no-cache", action="store_true", help="neither read nor write the store")

    add_patch(commands)
    add_minimal(commands)
    add_compare(commands)
    add_averages(commands)
    add_derive(commands)
    add_study(commands)
    models = commands.add_parser("models", help="list known models", description="The models that are known by name.")
    models.set_defaults(run=run_models)
    return top


def run_trace(arguments: argparse.Namespace) -> int:
    """The `trace` command."""
    from .tables import check_out

    out = check_out(arguments.out) if arguments.out is not None else None
    request = template(arguments, experts=_experts(arguments.experts))
    progress = TerminalProgress()
    sieve = Sieve(arguments, progress)

    try:
        from .trace import from_store

        with open_store(arguments.no_cache) as store:
            requests = [request.replace(fact=fact) for fact in sieve.usable]
            known = store is not None and not sieve.chooses_from_file(arguments)
            results = _all_stored(from_store, store, requests) if known else None
            if results is None:
                results = _compute(request, sieve, store, progress)
    finally:
        progress.close()

    from . import report
    from .tables import long_table, provenance, write_table

    if out is not None:
        table = long_table(results)
        write_table(table, out, metadata=provenance(results))
    print(report.summary(results[0]) if len(results) == 1 else report.summary_many(results))
    if out is not None:
        print(f"{len(table):,} rows written to {out}")
    return 0


def _all_stored(from_store: Any, store: Any, requests: list[TraceRequest]) -> list[TraceResult] | None:
    """The stored answers if all are there: then the model need not be loaded."""
    results = []
    for request in requests:
        result = from_store(store, request)
        if result is None:
            return None
        results.append(result)
    return results


def _compute(request: TraceRequest, sieve: Sieve, store: Any, progress: TerminalProgress) -> list[TraceResult]:
    """Load the model, leave out what its tokenizer cannot represent, trace the rest in packed sweeps."""
    from .trace import trace_many

    model = load(request.model, store, progress)

    return trace_many(model, sieve.tokenised(model, request), store=store, progress=progress)


def run_models(arguments: argparse.Namespace) -> int:
    """The `models` command."""
    from .catalog import catalogue

    memory = [f"memory {how}" for how in ("as stored", "int8", "float32")]
    rows = [["id", "parameters", "size", "layers × experts", "top-k", *memory, "quantised", "state"]]
    for model in catalogue():
        rows.append(
            [
                visible(model.id),
                _count(model.parameters),
                _gigabytes(model.size),
                model.shape,
                "?" if model.top_k is None else str(model.top_k),
                _gigabytes(model.memory()),
                "–" if model.quantisation else _gigabytes(model.memory(INT8_BYTES)),
                _gigabytes(model.memory(4)),
                described(model.quantisation) or "no",
                model.state,
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(
        "\nMemory: the weights and working space for a trace; where they do not fit, layers are read from the disk. "
        "Any other MoE model: its Hugging Face id, or its folder."
    )
    return 0


def _experts(text: str) -> str | tuple[int, ...]:
    """`last`, `all`, `none`, or positions such as `3,5`."""
    if text in ("last", "all", "none"):
        return text
    parts = [part.strip() for part in text.split(",")]
    if all(part.isascii() and part.isdigit() and len(part) < 7 for part in parts):
        return tuple(int(part) for part in parts)
    raise InputError(f"--experts is {text!r}.", "Choose last, all, none, or positions such as 3,5.", field="experts")


def _fail(what: str, next_step: str, code: int) -> int:
    say(f"Error: {what}" if code != 130 else what)
    if next_step:
        say(next_step)
    return code


def _defect(error: Exception) -> int:
    """Nothing a person did: say where it happened, the whole traceback on request."""
    if os.environ.get(DEBUG):
        traceback.print_exc()
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{os.path.basename(frame.filename)}:{frame.lineno}"
    return _fail(
        f"Unexpected failure, {type(error).__name__} at {where}: {error}",
        f"This is a defect of ExpertScope or of a library, not of your input. {DEBUG}=1 shows the traceback.",
        1,
    )


def _count(number: int | None) -> str:
    if number is None:
        return "?"
    return f"{number / 1e9:.1f} B" if number >= 1e9 else f"{number / 1e6:.1f} M"


def _gigabytes(number: int | None) -> str:
    if number is None:
        return "?"
    return f"{number / 1e9:.1f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB"
