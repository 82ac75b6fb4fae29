"""The command line: `python -m core trace …`, `patch …` and `models`.

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

from .cli_facts import Sieve
from .console import TerminalProgress, say, tolerant, visible
from .errors import ExpertScopeError, InputError, OutOfMemory, StoreError
from .requests import DEVICES, DTYPES, MAX_DRAWS, OBJECT_TOKENS, SCORES, SPECIAL_TOKENS, Fact, ModelSpec, TraceRequest
from .room import ran_out

if TYPE_CHECKING:
    from .prompts import PreparedFact
    from .results import TraceResult

EPILOG = """\
A fact is typed in (--prompt, --subject, --true, --foil), taken from the bundled list (--fact N [N ...]), or many are
read from a file (--facts FILE; with --fact only those case_ids of it). Facts of a file that cannot be traced are left
out and named on stderr.

  python -m core trace --prompt "The capital of {} is" --subject France --true Paris --foil Rome
  python -m core trace --fact 17 --draws 10 --out fact17.parquet
  python -m core trace --model allenai/OLMoE-1B-7B-0924 --facts counterfact.json --foil auto --out all.csv
"""
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
the norm of expert 7's where that is smaller.
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

    _fact_options(trace)
    trace.add_argument_group("experts").add_argument(
        "--experts", default="last", metavar="WHERE", help="expert patches at the last position, all, none, or at 3,5"
    )
    output = trace.add_argument_group("output")
    output.add_argument("--out", metavar="FILE", help="write the long table: .parquet, .csv or .json")
    output.add_argument("--no-cache", action="store_true", help="neither read nor write the store")

    patch = commands.add_parser(
        "patch",
        help="any interventions, from a file",
        description="Run the interventions of a file: restore, add, knock out; one row per fact, patch and draw.",
        epilog=PATCH_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    patch.set_defaults(run=run_patch)
    _fact_options(patch)
    output = patch.add_argument_group("patches and output")
    output.add_argument("--patches", required=True, metavar="FILE", help="JSON list of patches")
    output.add_argument(
        "--score", default="contrast", choices=SCORES, help="what rescue and restoration are measured in (contrast)"
    )
    output.add_argument("--out", metavar="FILE", help="write the table: .parquet, .csv or .json")
    output.add_argument("--no-cache", action="store_true", help="do not use the store (load-time checks run again)")

    models = commands.add_parser("models", help="list known models", description="The models that are known by name.")
    models.set_defaults(run=run_models)
    return top


def _fact_options(command: argparse.ArgumentParser) -> None:
    """The options that say which model, which facts and which corruption."""
    model = command.add_argument_group("model")
    model.add_argument("--model", default="demo", metavar="NAME", help="demo, a Hugging Face id or a folder (demo)")
    model.add_argument("--revision", metavar="REV", help="branch, tag or commit of a Hugging Face id")
    model.add_argument("--dtype", default="auto", choices=DTYPES, help="auto: float32 on a CPU where it fits")
    model.add_argument("--device", default="auto", choices=DEVICES)

    fact = command.add_argument_group("facts")
    fact.add_argument("--prompt", metavar="TEXT", help="template with {} for the subject, or the whole text")
    fact.add_argument("--subject", metavar="TEXT")
    fact.add_argument("--true", metavar="TEXT", help="the true object")
    fact.add_argument("--foil", metavar="TEXT", help="a false object; auto: the most probable other token")
    fact.add_argument("--occurrence", type=int, metavar="K", help="which occurrence of the subject is meant (from 1)")
    fact.add_argument("--case-id", type=int, metavar="N", help="number of a typed fact; seeds its noise (0)")
    fact.add_argument("--fact", type=int, nargs="+", metavar="N", help="facts by case_id, bundled or of --facts")
    fact.add_argument("--facts", metavar="FILE", help="CounterFact .json, .jsonl, .csv, .parquet")

    method = command.add_argument_group("method")
    method.add_argument("--noise", type=float, default=3.0, metavar="X", help="noise level, × embedding std (3)")
    method.add_argument("--draws", type=int, default=1, metavar="N", help=f"noise draws, 1 to {MAX_DRAWS} (1)")
    method.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the noise, plus the case_id (0)")
    method.add_argument("--special-tokens", default="auto", choices=SPECIAL_TOKENS)
    method.add_argument("--object-tokens", default="space", choices=OBJECT_TOKENS)
    method.add_argument("--first-token", action="store_true", help="let an object's first token stand for it")


def run_trace(arguments: argparse.Namespace) -> int:
    """The `trace` command."""
    from .tables import check_out

    out = check_out(arguments.out) if arguments.out is not None else None
    template = _template(arguments, experts=_experts(arguments.experts))
    progress = TerminalProgress()
    sieve = Sieve(arguments, progress)

    try:
        from .trace import from_store

        with _store(arguments.no_cache) as store:
            requests = [template.replace(fact=fact) for fact in sieve.usable]
            results = None if store is None else _all_stored(from_store, store, requests)
            if results is None:
                results = _compute(template, sieve, store, progress)
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


def _compute(template: TraceRequest, sieve: Sieve, store: Any, progress: TerminalProgress) -> list[TraceResult]:
    """Load the model, leave out what its tokenizer cannot represent, trace the rest in packed sweeps."""
    from .trace import trace_many

    model = _load(template.model, store, progress)

    return trace_many(model, sieve.tokenised(model, template), store=store, progress=progress)


def _load(spec: ModelSpec, store: Any, progress: TerminalProgress) -> Any:
    from .models import load_model

    return load_model(
        spec.name, revision=spec.revision, dtype=spec.dtype, device=spec.device, progress=progress, store=store
    )


def run_patch(arguments: argparse.Namespace) -> int:
    """The `patch` command."""
    from .patch_file import build, read_patches
    from .tables import check_out

    out = check_out(arguments.out) if arguments.out is not None else None
    specs = read_patches(arguments.patches)
    template = _template(arguments, experts="none")
    progress = TerminalProgress()
    sieve = Sieve(arguments, progress)
    try:
        from .patching import patch_many

        with _store(arguments.no_cache) as store:
            model = _load(template.model, store, progress)

            def fits(prepared: PreparedFact) -> None:
                for spec in specs:
                    place = {"n_tokens": len(prepared.input_ids), "last_subject": prepared.subject_positions[-1]}
                    build(spec, **place, clean=0, corrupt=1)

            requests = sieve.tokenised(model, template, fits)
            results = patch_many(model, requests, specs, score=arguments.score, progress=progress)
    finally:
        progress.close()

    from . import report
    from .tables import long_table, provenance, write_table

    table = long_table(results)
    if out is not None:
        write_table(table, out, metadata=provenance(results))
    print(report.patches_summary(results))
    if out is not None:
        print(f"{len(table):,} rows written to {out}")
    return 0


def _template(arguments: argparse.Namespace, *, experts: str | tuple[int, ...]) -> TraceRequest:
    """The request of every fact of a command, but for the fact."""
    return TraceRequest(
        fact=Fact("", "", ""),
        model=ModelSpec(arguments.model, arguments.revision, arguments.dtype, arguments.device),
        noise=arguments.noise,
        draws=arguments.draws,
        seed=arguments.seed,
        special_tokens=arguments.special_tokens,
        object_tokens=arguments.object_tokens,
        first_token=arguments.first_token,
        experts=experts,
    )


def run_models(arguments: argparse.Namespace) -> int:
    """The `models` command."""
    from .catalog import catalogue

    rows = [["id", "parameters", "size", "layers × experts", "top-k", "memory as stored", "memory float32", "state"]]
    for model in catalogue():
        rows.append(
            [
                visible(model.id),
                _count(model.parameters),
                _gigabytes(model.size),
                model.shape,
                "?" if model.top_k is None else str(model.top_k),
                _gigabytes(model.memory()),
                _gigabytes(model.memory(4)),
                model.state,
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(
        "\nMemory: the weights and working space for a trace. Any other MoE model: its Hugging Face id, or its folder."
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


@contextlib.contextmanager
def _store(no_cache: bool) -> Any:
    """The open store, or None where it is not wanted or cannot be had (which is said, and stops nothing)."""
    if no_cache:
        yield None
        return
    from cache.store import Store

    try:
        store = Store.open()
    except StoreError as error:
        say(f"Going on without the store: {error}")
        yield None
        return
    try:
        yield store
    finally:
        store.close()


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
