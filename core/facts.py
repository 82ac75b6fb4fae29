"""Lists of facts: the bundled one, and files in CounterFact's shape or with the column names common in its offspring.

Reads CounterFact JSON and JSONL, CSV and TSV, Parquet; flat tables with the columns of `NeelNanda/counterfact-tracing`
and ROME's `known_1000`. Knows neither tokenizers nor models: whether a fact can be traced is for `core.prompts` to say.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from .errors import ExpertScopeError, InputError
from .fact_files import Row, rows_of
from .requests import Fact

BUNDLED = Path(__file__).resolve().parent.parent / "demo" / "facts.jsonl"
MAX_CASE_ID = 2**62
_SHOWN = 5  # rows listed in one message

PROMPT_COLUMNS = ("prompt",)
TEMPLATE_COLUMNS = ("template", "relation")
TRUE_COLUMNS = ("target_true", "true", "attribute")
FOIL_COLUMNS = ("target_new", "target_false", "foil")


def bundled() -> list[Fact]:
    """The facts that come with the demo model (demo/facts.jsonl), in file order."""
    return list(_bundled())


@lru_cache(maxsize=1)
def _bundled() -> tuple[Fact, ...]:
    if not BUNDLED.is_file():
        raise ExpertScopeError(
            f"The bundled facts are missing: there is no file {BUNDLED.parent.name}/{BUNDLED.name}.",
            "Clone the repository again, or give a file of facts (--facts FILE).",
        )
    return tuple(read(BUNDLED))


@lru_cache(maxsize=1)
def bundled_digest() -> str:
    """Changes with the bundled list."""
    return hashlib.sha256(BUNDLED.read_bytes()).hexdigest() if BUNDLED.is_file() else ""


def read(source: str | Path | bytes, name: str = "", *, foil: str = "file", seed: int = 0) -> list[Fact]:
    """The facts of a file, in its order.

    `source` is a path, or the content (then `name` tells the format by its ending). Columns, the first that is there
    counts:

    - subject: `subject`
    - prompt: `prompt` (with `{}`, or the whole text), `relation_prefix` + `relation_suffix`, `template`, `relation`
      where it holds a `{}`. A whole text is turned back into a template where one of the others shows how; where the
      text goes on after the template (ROME's `known_1000`), the text is right.
    - true object: `target_true`, `true`, `attribute`; foil: `target_new`, `target_false`, `foil`
    - relation: `relation_id`, else `relation`; `occurrence`, `foil_auto` (true or false): see `Fact`
    - `case_id`: else the row number, counted from 0 (also where there is a `known_id`)

    All of them also inside `requested_rewrite`, objects also as `{"str": …}`. Subject and objects are stripped.

    Without a foil in the file: `random.Random(seed + case_id).choice` from the sorted true objects of the file's other
    facts of the same relation, without those that are true of this subject. Where there are none, the foil stays None
    and tracing that fact is refused; an error if that holds for every fact. `foil="auto"` sets `Fact.foil_auto` on
    all: the model's most probable other token, whatever the file says.

    Raises `InputError` that names file, row (counted from 0) and column.
    """
    rows = rows_of(source, name)
    file = rows.name
    facts: list[Fact] = []
    where: dict[int, Row] = {}
    for row in rows.rows:
        fact = _fact(row, file)
        if fact.case_id in where:
            other = where[fact.case_id]
            hint = "" if other.has("case_id") and row.has("case_id") else " (records without one get their row number)"
            raise InputError(
                f"{file}: {other} and {row} have the same case_id {fact.case_id}{hint}.",
                "Give every record its own case_id, or none to all.",
                field="facts",
            )
        where[fact.case_id] = row
        facts.append(replace(fact, foil=None, foil_auto=True) if foil == "auto" else fact)
    if foil == "auto":
        return facts
    facts = draw_foils(facts, seed=seed)
    lacking = [where[f.case_id] for f in facts if f.foil is None and not f.foil_auto]
    if lacking and len(lacking) == len(facts):
        reason = (
            "no other object of the same relation is in the file to draw one from"
            if any(f.relation for f in facts)
            else "there is no relation to draw one from (column relation_id)"
        )
        raise InputError(
            f"{file}: no fact has a foil (column target_new or target_false), and {reason}: {_listed(lacking)}.",
            "Add foils, or a column foil_auto with true: the model's most probable other token is the foil then "
            "(--foil auto for all of them).",
            field="foil",
        )
    return facts


def draw_foils(facts: Sequence[Fact], *, seed: int = 0) -> list[Fact]:
    """Give every fact without a foil another true object of its relation (see `read`); None stays where none is."""
    by_relation: dict[str, set[str]] = {}
    by_subject: dict[str, set[str]] = {}
    for fact in facts:
        by_subject.setdefault(fact.subject.casefold(), set()).add(fact.true.casefold())
        if fact.relation:
            by_relation.setdefault(fact.relation, set()).add(fact.true)
    ordered = {relation: sorted(objects) for relation, objects in by_relation.items()}
    out = []
    for fact in facts:
        if fact.foil is None and not fact.foil_auto and fact.relation:
            true_of_subject = by_subject[fact.subject.casefold()]
            candidates = [o for o in ordered[fact.relation] if o.casefold() not in true_of_subject]
            if candidates:
                fact = replace(fact, foil=random.Random(seed + fact.case_id).choice(candidates))
        out.append(fact)
    return out


def find(facts: Iterable[Fact], case_id: int) -> Fact:
    """The fact with this case_id."""
    facts = list(facts)
    for fact in facts:
        if fact.case_id == case_id:
            return fact
    ids = [f.case_id for f in facts]
    known = f"The {len(ids)} case_ids go from {min(ids)} to {max(ids)}." if ids else "The list is empty."
    raise InputError(f"There is no fact with case_id {case_id}.", known, field="fact")


def repeats(facts: Iterable[Fact]) -> list[int]:
    """case_ids of the facts that ask just what an earlier one of them asks: the same text, subject and objects. Only
    their noise is another, as case_ids seed it; whatever counts facts counts them again."""
    seen, out = set(), []
    for fact in facts:
        asked = (fact.text, fact.subject, fact.occurrence, fact.true, fact.foil, fact.foil_auto)
        if asked in seen:
            out.append(fact.case_id)
        seen.add(asked)
    return out


def relations(facts: Iterable[Fact]) -> dict[str, int]:
    """Number of facts of each relation, in alphabetical order; facts without one are left out."""
    counts: dict[str, int] = {}
    for fact in facts:
        if fact.relation:
            counts[fact.relation] = counts.get(fact.relation, 0) + 1
    return dict(sorted(counts.items()))


def search(
    facts: Iterable[Fact],
    text: str = "",
    *,
    relation: str | None = None,
    limit: int | None = 50,
    everywhere: bool = False,
) -> list[Fact]:
    """Facts whose subject, relation, true object or case_id hold every word of `text`, regardless of case and accents.

    Facts whose subject is or begins with `text` come first; else the order stays. `everywhere`: prompt and foil are
    searched, too.
    """
    words = _folded(text).split()
    whole = " ".join(words)
    hits: list[tuple[int, Fact]] = []
    for fact in facts:
        if relation is not None and fact.relation != relation:
            continue
        subject = _folded(fact.subject)
        hay = f"{subject} {_folded(fact.relation or '').replace('_', ' ')} {_folded(fact.relation or '')}"
        hay = f"{hay} {_folded(fact.true)} {fact.case_id}"
        if everywhere:
            hay = f"{hay} {_folded(fact.text)} {_folded(fact.foil or '')}"
        if all(word in hay for word in words):
            rank = 0 if whole in (subject, str(fact.case_id)) else 1 if subject.startswith(whole) else 2
            hits.append((rank if words else 0, fact))
    hits.sort(key=lambda hit: hit[0])  # stable: file order within a rank
    found = [fact for _, fact in hits]
    return found if limit is None else found[:limit]


def _fact(row: Row, file: str) -> Fact:
    """One record as a `Fact`; its foil is None where the record has none."""
    subject_as_it_is = _text(row, file, ("subject",))
    true = _text(row, file, TRUE_COLUMNS).strip()
    auto = _flag(row, file, "foil_auto")
    foil = None if auto else _text(row, file, FOIL_COLUMNS, required=False)
    relation = _text(row, file, ("relation_id", "relation"), required=False)
    return Fact(
        prompt=_prompt(row, file, subject_as_it_is),
        subject=subject_as_it_is.strip(),
        true=true,
        foil=foil.strip() if foil else None,
        case_id=_integer(row, file, "case_id", row.number, low=0, high=MAX_CASE_ID),
        relation=relation.strip() if relation else None,
        occurrence=_integer(row, file, "occurrence", None, low=1, high=10_000),
        foil_auto=auto,
    )


def _prompt(row: Row, file: str, subject: str) -> str:
    """A template with `{}` wherever the record allows; else the whole text."""
    prompt = _text(row, file, PROMPT_COLUMNS, required=False)
    if prompt is not None and "{}" in prompt:
        return prompt
    templates = []
    prefix = _text(row, file, ("relation_prefix",), required=False, blank=True)
    suffix = _text(row, file, ("relation_suffix",), required=False, blank=True)
    bare = subject.strip()
    if prefix is not None or suffix is not None:
        before, after = prefix or "", suffix or ""
        if "{}" in before + after:
            templates.append(before + after)
        else:
            # counterfact-tracing keeps the space before the subject in the subject
            space = subject[: len(subject) - len(subject.lstrip())]
            if not space and before and not before[-1].isspace():
                space = " "
            templates.append(f"{before}{space}{{}}{after}")
    for column in TEMPLATE_COLUMNS:
        template = _text(row, file, (column,), required=False)
        if template is not None and "{}" in template:
            templates.append(template)
    if prompt is None:
        if templates:
            return templates[0]
        raise InputError(
            f"{file}: {row} has no prompt (column prompt).",
            f"Its columns are: {', '.join(row.columns)}.",
            field="facts",
        )
    for template in templates:
        if template.count("{}") == 1 and prompt.startswith(filled := template.replace("{}", bare)):
            return template + prompt[len(filled) :]
    return prompt


def _text(row: Row, file: str, columns: tuple[str, ...], *, required: bool = True, blank: bool = False) -> str | None:
    """The first of `columns` that has a value, as text. White space alone is no value unless `blank`."""
    for column in columns:
        value = row.get(column)
        if isinstance(value, dict) and "str" in value:
            value = value["str"]
        if _missing(value) or (isinstance(value, str) and not value.strip() and not (blank and value)):
            continue
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise InputError(
                f"{file}: {row}, column {column}, holds {_short(value)} where a text belongs.",
                'It has to be a text, or {"str": text} for an object.',
                field="facts",
            )
        text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
        if any("\ud800" <= char <= "\udfff" for char in text):
            raise InputError(
                f"{file}: {row}, column {column}, holds half of a surrogate pair, which is no character.",
                "The text was damaged by a wrong encoding: make the file again.",
                field="facts",
            )
        return text
    if not required:
        return None
    have = ", ".join(row.columns) or "none"
    named = columns[0] if len(columns) == 1 else f"{columns[0]} (or {', '.join(columns[1:])})"
    empty = next((c for c in columns if c in row.columns), None)
    what = f"column {empty}, is empty" if empty else f"there is no column {named}"
    raise InputError(
        f"{file}: {row}: {what}." if not empty else f"{file}: {row}, {what}.",
        ("Write it in, or take the row out of the file. " if empty else "") + f"Its columns are: {have}.",
        field="facts",
    )


def _integer(row: Row, file: str, column: str, default: int | None, *, low: int, high: int) -> int | None:
    value = row.get(column)
    if _missing(value) or (isinstance(value, str) and not value.strip()):
        return default
    number: int | None = None
    if isinstance(value, bool):
        pass
    elif isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        number = int(value)
    elif isinstance(value, str) and re.fullmatch(r"\s*[0-9]{1,20}(\.0+)?\s*", value, re.ASCII):
        number = int(value.split(".")[0])
    if number is None or not low <= number <= high:
        raise InputError(
            f"{file}: {row}, column {column}, holds {_short(value)}.",
            f"It has to be a whole number from {low} to {high}.",
            field="facts",
        )
    return number


def _flag(row: Row, file: str, column: str) -> bool:
    value = row.get(column)
    if _missing(value) or (isinstance(value, str) and not value.strip()):
        return False
    known = {"true": True, "1": True, "false": False, "0": False}.get(str(value).strip().lower())
    if known is None:
        raise InputError(
            f"{file}: {row}, column {column}, holds {_short(value)}.", "It has to be true or false.", field="facts"
        )
    return known


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except RecursionError:
        text = "something nested too deeply"
    return text if len(text) <= 60 else text[:60] + "…"


def _listed(rows: Sequence[Row]) -> str:
    shown = ", ".join(str(row) for row in rows[:_SHOWN])
    return shown if len(rows) <= _SHOWN else f"{shown} and {len(rows) - _SHOWN} more"


def _folded(text: str) -> str:
    """Lower case without accents, for searching."""
    return "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))
