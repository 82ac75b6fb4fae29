"""Files of records → rows of named values: JSON, JSONL, CSV, TSV, Parquet. Knows formats, not what a fact is.

Every error names the file, and the row and column where there is one. Rows are counted from 0, as case_ids are.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import parquet_files
from .errors import InputError
from .parquet_files import MAX_BYTES, MAX_COLUMNS

MAX_ROWS = 500_000
MAX_CELLS = 10_000_000  # in all; each takes about a hundred bytes, and in a file two, or in Parquet next to none
MAX_CHARS = 20_000  # of one value; a prompt is a sentence, not a book
FORMATS = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
}


@dataclass(frozen=True)
class Row:
    """One record. `number`: counted from 0. `line`: of a text file, counted from 1, where it is known.

    `values` are those of the record, with the members of its `requested_rewrite` (CounterFact) beside them.
    """

    number: int
    values: dict[str, Any]
    line: int | None = None

    @property
    def columns(self) -> list[str]:
        """Names that the record has, in its order."""
        return list(self.values)

    def get(self, column: str) -> Any:
        """The value, or None."""
        return self.values.get(column)

    def has(self, column: str) -> bool:
        """Whether the record has this column at all, and not as a null."""
        return self.values.get(column) is not None

    def __str__(self) -> str:
        return f"row {self.number}" + (f" (line {self.line})" if self.line is not None else "")


@dataclass(frozen=True)
class Rows:
    """All records of a file that is called `name`."""

    name: str
    rows: list[Row] = field(default_factory=list)


def rows_of(source: str | Path | bytes, name: str = "") -> Rows:
    """Read a file's records. `source` is a path, or the content with the file's `name` beside it."""
    if isinstance(source, bytes):
        content, name = source, name or "the file"
    else:
        path = Path(source)
        name = name or path.name
        content = _content(path)
    if len(content) > MAX_BYTES:
        raise _bad(name, f"has more than {MAX_BYTES // 2**20} MiB.", "Cut it into smaller files.")
    suffix = Path(name).suffix.lower()
    if suffix not in FORMATS:
        raise _bad(name, "is of an unknown format.", f"The name has to end in one of: {', '.join(FORMATS)}.")
    if not content.strip():
        raise _bad(name, "is empty.", "Give a file with one record per fact.")
    kind = FORMATS[suffix]
    if kind == "parquet":
        records = _parquet(content, name)
    else:
        text = _decoded(content, name)
        _check_counts(text, kind, name)
        if kind == "json":
            records = _json(text, name)
        elif kind == "jsonl":
            records = _jsonl(text, name)
        else:
            records = _csv(text, name, delimiter="\t" if kind == "tsv" else None)
    if not records:
        raise _bad(name, "holds no records.", "Give a file with one record per fact.")
    if len(records) > MAX_ROWS:
        raise _bad(name, f"has {len(records):,} records; at most {MAX_ROWS:,} are read.", "Cut it into smaller files.")
    rows = []
    for number, (line, record) in enumerate(records):
        if len(record) > MAX_COLUMNS:
            place = Row(number, {}, line)
            raise _bad(name, f"{place} has {len(record):,} columns.", f"At most {MAX_COLUMNS:,} are read.")
        row = Row(number, _flattened(record), line)
        for column, value in row.values.items():
            if isinstance(value, str) and len(value) > MAX_CHARS:
                raise _bad(
                    name, f"{row}, column {column}, has {len(value):,} characters.", f"At most {MAX_CHARS:,} are read."
                )
        rows.append(row)
    return Rows(name, rows)


def _content(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise _bad(str(path), "is a folder.", "Name a file.")
        if not path.exists():
            raise _bad(str(path), "does not exist.", "Check the path.")
        if path.stat().st_size > MAX_BYTES:
            raise _bad(str(path), f"has more than {MAX_BYTES // 2**20} MiB.", "Cut it into smaller files.")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise _bad(str(path), f"cannot be read: {reason}.", "Check the path and its permissions.") from None


def _decoded(content: bytes, name: str) -> str:
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise _bad(name, f"is not UTF-8: line {line}, byte {error.start}.", "Save it as UTF-8.") from None


def _check_counts(text: str, kind: str, name: str) -> None:
    """Refuse, before it is taken apart, what would take many times its own size: counting takes no memory."""
    lines = 0 if kind == "json" else text.count("\n")
    if lines > 4 * MAX_ROWS:
        raise _bad(name, f"has {lines:,} lines; at most {MAX_ROWS:,} records are read.", "Cut it into smaller files.")
    parts = text.count("{") + text.count("[") if kind in ("json", "jsonl") else 0
    if max(parts, *map(text.count, ",;\t")) > MAX_CELLS:
        raise _bad(name, f"has more values than the {MAX_CELLS:,} that are read.", "Cut it into smaller files.")


def _json(text: str, name: str) -> list[tuple[int | None, dict]]:
    """A list of records, or one record. Lines of records under this name are read as such."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        first = text.lstrip().split("\n", 1)[0]
        if _is_record_line(first) and "\n" in text.strip():
            return _jsonl(text, name)
        line = f"line {error.lineno}, " if hasattr(error, "lineno") else ""
        raise _bad(name, f"is no valid JSON: {line}{_why(error)}.", "") from None
    if isinstance(data, dict):
        if "requested_rewrite" not in data and "subject" not in data:
            shown = ", ".join(map(str, list(data)[:8])) or "no keys"
            raise _bad(
                name,
                f"holds one object ({shown}), not a list of records.",
                "It has to be a list, [{…}, {…}], as CounterFact's own file.",
            )
        data = [data]
    if not isinstance(data, list):
        raise _bad(name, f"holds a {_kind(data)}, not a list of records.", "It has to be a list, [{…}, {…}].")
    for number, record in enumerate(data):
        if not isinstance(record, dict):
            raise _bad(name, f"row {number} is a {_kind(record)}, not a record {{…}}.", "")
    return [(None, record) for record in data]


def _why(error: ValueError | RecursionError) -> str:
    """What is wrong with JSON that could not be read."""
    if isinstance(error, json.JSONDecodeError):
        return f"column {error.colno}: {error.msg}"
    return "it is nested too deeply" if isinstance(error, RecursionError) else "a number has too many digits"


def _is_record_line(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _jsonl(text: str, name: str) -> list[tuple[int | None, dict]]:
    records: list[tuple[int | None, dict]] = []
    # not str.splitlines: JSON strings may hold U+2028 and its like, which that would cut at
    for line_number, line in enumerate(io.StringIO(text, newline="\n"), 1):
        if not line.strip():
            continue
        row = Row(len(records), {}, line_number)
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            why = f"{row} is no valid JSON: {_why(error)}."
            raise _bad(name, why, "Every line has to be one record {…}.") from None
        if isinstance(record, list) and not records and all(isinstance(r, dict) for r in record):
            return [(None, r) for r in record]  # a JSON list under a .jsonl name
        if not isinstance(record, dict):
            raise _bad(name, f"{row} is a {_kind(record)}, not a record {{…}}.", "")
        records.append((line_number, record))
    return records


def _csv(text: str, name: str, *, delimiter: str | None) -> list[tuple[int | None, dict]]:
    if "\0" in text:
        raise _bad(name, "holds zero bytes: it is no text table.", "Save it as CSV in UTF-8.")
    if delimiter is None:
        header = text.split("\n", 1)[0]
        delimiter = max(",;\t", key=header.count)
    old_limit = csv.field_size_limit(MAX_CHARS * 4)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        header = [h.strip() for h in next(reader, [])]
        if len(header) > MAX_COLUMNS:
            raise _bad(name, f"has {len(header):,} columns.", f"At most {MAX_COLUMNS:,} are read.")
        twice = sorted({h for h in header if h and header.count(h) > 1})
        if twice:
            raise _bad(name, f"has the column {twice[0]} twice.", "Give each column its own name.")
        records: list[tuple[int | None, dict]] = []
        start = reader.line_num + 1
        for cells in reader:
            line, start = start, reader.line_num + 1
            if not any(c.strip() for c in cells):
                continue
            row = Row(len(records), {}, line)
            if len(cells) != len(header):
                raise _bad(
                    name,
                    f"{row} has {len(cells)} cells, the header has {len(header)}.",
                    'A cell that holds the separator has to stand in quotation marks: "Paris, Texas".',
                )
            # an index column written by pandas has no name
            values = {h: _cell(c) for h, c in zip(header, cells, strict=True) if h}
            records.append((line, values))
        return records
    except csv.Error as error:
        raise _bad(
            name, f"is no valid CSV: line {reader.line_num}: {error}.", "Check the quotation marks there."
        ) from None
    finally:
        csv.field_size_limit(old_limit)


def _cell(cell: str) -> Any:
    """A cell as text; a JSON object in a cell (CounterFact's `requested_rewrite`) as that; an empty one as None."""
    if cell == "":
        return None
    if cell.startswith("{") and cell.endswith("}") and len(cell) > 2:
        try:
            return json.loads(cell)
        except (ValueError, RecursionError):
            return cell
    return cell


def _parquet(content: bytes, name: str) -> list[tuple[int | None, dict]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    most = f"{MAX_ROWS:,} rows, {MAX_CELLS:,} values or {MAX_BYTES // 2**20} MiB"
    try:
        types = pq.read_schema(pa.BufferReader(content)).types
        if any(pa.types.is_nested(kind) and "dictionary<" in str(kind) for kind in types):
            raise _bad(name, "holds categories inside of lists or records.", "Save them as texts.")
        limits = {"max_rows": MAX_ROWS, "max_values": MAX_CELLS, "max_columns": MAX_COLUMNS, "max_bytes": MAX_BYTES}
        parts = parquet_files.batches(content, **limits)
        return [(None, record) for batch in parts for record in batch.to_pylist()]
    except parquet_files.TooManyColumns as error:
        raise _bad(name, f"has {error.n:,} columns.", f"At most {MAX_COLUMNS:,} are read.") from None
    except parquet_files.TooLarge:
        raise _bad(name, f"unpacks to more than {most}.", "Cut it into smaller files.") from None
    except (pa.ArrowException, OSError, ValueError, ArithmeticError) as error:
        reason = str(error).split("\n")[0].strip().rstrip(".")
        raise _bad(name, f"is no readable Parquet file: {reason}.", "") from None


def _flattened(record: dict) -> dict[str, Any]:
    """The record with CounterFact's `requested_rewrite` laid open, whether nested or as dotted columns. Names count
    in any case and with blanks or hyphens: `Target True` is `target_true`, unless that is there too."""
    values: dict[str, Any] = {}
    given = {str(key) for key in record}
    for key, value in record.items():
        key = str(key)
        if key == "requested_rewrite" and isinstance(value, dict):
            values.update({str(k): v for k, v in value.items()})
            continue
        key = key.removeprefix("requested_rewrite.").removesuffix(".str")
        plain = "_".join(key.lower().replace("-", " ").split())
        values.setdefault(key if plain in given else plain, value)
    return values


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    return {str: "text", list: "list", bool: "true/false value", dict: "record"}.get(type(value), "number")


def _bad(name: str, what: str, next_step: str) -> InputError:
    what = f"{name}: {what}" if what.startswith("row ") else f"{name} {what}"
    return InputError(what, next_step, field="facts")
