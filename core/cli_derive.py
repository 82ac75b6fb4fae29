"""The `derive` command: a question that is more than one trace (a page's averages, routing, an expert's dossier).

The question is JSON, as the pages' Script shows it; the answer's tables are written as files.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli_options import answered
from .console import visible
from .errors import InputError
from .tables import SUFFIXES, write_file, write_table

if TYPE_CHECKING:
    from .derived import DerivedRequest, DerivedResult
    from .requests import Fact

EPILOG = """\
QUESTION is JSON with kind, model (its fields), settings and facts: numbers of the bundled list, whole facts, or a set
(source: bundled or a list of the Library page; relations, n, seed), as the pages' Script button gives it. A file's
name works too.

  python -m core derive '{"kind": "routing", "model": {"name": "demo"}, "settings": {}, "facts": [17, 18]}' --out found
"""


def add_derive(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "derive",
        help="a question of another page than Trace, answered into files",
        description="Answer a question that is more than one trace.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_argument("question", metavar="QUESTION", help="JSON, or a file with it")
    command.add_argument("--out", metavar="FOLDER", help="write the answer's tables and values there (made if need be)")
    command.add_argument("--format", default=".parquet", choices=SUFFIXES, help="of the tables (.parquet)")
    command.add_argument("--no-cache", action="store_true", help="neither read nor write the store")
    command.set_defaults(run=run_derive)


def run_derive(arguments: argparse.Namespace) -> int:
    """The `derive` command."""
    request = read(arguments.question)
    result = answered(request, no_cache=arguments.no_cache)
    for line in result.values.get("caption", [request.title]):
        print(visible(line))
    for note in result.provenance.get("notes", []):
        print(f"Note: {visible(note)}")
    for name, table in result.tables.items():
        print(f"\n{visible(name)} ({len(table):,} rows)\n{visible_table(table)}")
    if arguments.out is not None:
        written = _write(result, Path(arguments.out).expanduser(), arguments.format)
        print(f"\n{written} files written to {arguments.out}")
    return 0


def read(text: str) -> DerivedRequest:
    """The question in JSON `text`, or in the file of that name. Raises `InputError` where it is none."""
    from .derived import KINDS, DerivedRequest
    from .requests import ModelSpec

    if not text.lstrip().startswith("{"):
        try:
            text = Path(text).expanduser().read_text("utf-8")
        except (OSError, ValueError) as error:
            raise InputError(f"{text!r} cannot be read: {error}.", "Give JSON or a file.", field="question") from None
    try:
        data = json.loads(text)
        if data["kind"] not in KINDS:
            raise InputError(
                f"There is no kind {data['kind']!r}.", f"Choose one of: {', '.join(KINDS)}.", field="question"
            )
        given = _facts(data.get("facts", []))
        return DerivedRequest.of(
            data["kind"], ModelSpec(**data.get("model", {})), facts=given, **data.get("settings", {})
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise InputError(f"That is no question: {why}.", "Copy it from a page (Script).", field="question") from None


def _facts(given: Any) -> Sequence[Fact]:
    """Facts by their numbers in the bundled list, whole ones, or those of a set."""
    from . import facts
    from .cli_lists import LIST, facts_of
    from .fact_sets import BUNDLED, FactSet, choose
    from .requests import Fact

    if isinstance(given, dict):
        chosen = FactSet(**{**given, "relations": tuple(given.get("relations", ()))})
        return choose(chosen, facts_of(BUNDLED if chosen.source == BUNDLED else f"{LIST}{chosen.source}"))
    known = facts.bundled()
    return [facts.find(known, f) if isinstance(f, int) else Fact(**f) for f in given]


def visible_table(table: Any) -> str:
    """The first and last rows of a table as text that drives no terminal."""
    return "\n".join(visible(line) for line in table.to_string(max_rows=12, max_cols=12).split("\n"))


def _write(result: DerivedResult, folder: Path, suffix: str) -> int:
    from .export import origin

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {folder}: {error.strerror}.", "Name a folder.", field="out") from None
    for name, table in result.tables.items():
        write_table(table, folder / f"{name}{suffix}", metadata=origin(result))
    rest = {"values": result.values, **origin(result)}
    write_file((json.dumps(rest, indent=1, ensure_ascii=False) + "\n").encode(), folder / "answer.json")
    return len(result.tables) + 1
