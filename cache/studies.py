"""Studies in the store: settings, plan and state of each, and what its batches left behind, committed one by one.

Knows names, JSON and bytes; not what a study measures. The file is open only while a method runs (or as long as a
`Store` of the same process holds it), so that several processes can work on studies of one store in turn.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.errors import InputError, StoreError

from .borrowed import Borrowed
from .database import Database
from .migrations import Cursor

MAX_NAME = 120

_HEAD = "id, name, model, settings, plan, provenance, state, note, progress, stop, created, updated"


@dataclass(frozen=True)
class StudyRecord:
    """One study without its parts. `id` stays, names can change; `state`: see `core.study.data`; `note`: why it failed,
    or what is done before it runs; `progress`: how far it is, as JSON; `stop`: someone asked it to stop; `created`,
    `updated`: microseconds since 1970."""

    id: int
    name: str
    model: str
    settings: dict[str, Any]
    plan: dict[str, Any]
    provenance: dict[str, Any]
    state: str
    note: str
    progress: dict[str, Any]
    stop: bool
    created: int
    updated: int


class Studies(Borrowed):
    """All studies of one store. Methods may be called from any thread; what they raise for a person is a StoreError,
    or an InputError where a name is wrong, taken or unknown."""

    # -- reading ----------------------------------------------------------------------------------------------------

    def all(self) -> list[StudyRecord]:
        """Every study, oldest first."""
        return [_record(row) for row in self._read(f"SELECT {_HEAD} FROM studies ORDER BY id")]

    def find(self, name: str) -> StudyRecord | None:
        """The study of that name, or None."""
        rows = self._read(f"SELECT {_HEAD} FROM studies WHERE name = $name", {"name": _stored(name)})
        return _record(rows[0]) if rows else None

    def get(self, name: str) -> StudyRecord:
        """The study of that name; InputError if there is none."""
        found = self.find(name)
        if found is None:
            raise self._unknown(name)
        return found

    def parts(self, name: str, stage: str | None = None) -> dict[tuple[str, int], bytes]:
        """The parts of a study (of one stage), by (stage, number) in the order of both."""
        query = """
            SELECT stage, number, payload FROM study_parts
            WHERE study = (SELECT id FROM studies WHERE name = $name) AND ($stage IS NULL OR stage = $stage)
            ORDER BY stage, number"""
        rows = self._read(query, {"name": _stored(name), "stage": stage})
        return {(found, number): bytes(payload) for found, number, payload in rows}

    def part_names(self, name: str) -> set[tuple[str, int]]:
        """(stage, number) of every part of a study, without reading them."""
        query = """
            SELECT stage, number FROM study_parts WHERE study = (SELECT id FROM studies WHERE name = $name)"""
        return set(self._read(query, {"name": _stored(name)}))

    # -- writing ----------------------------------------------------------------------------------------------------

    def add(
        self,
        name: str,
        *,
        model: str,
        settings: Mapping[str, Any],
        plan: Mapping[str, Any],
        provenance: Mapping[str, Any],
        state: str,
        progress: Mapping[str, Any],
        parts: Sequence[tuple[str, int, bytes]] = (),
        created: int | None = None,
    ) -> None:
        """A new study with its first parts, in one transaction. Raises InputError where the name is taken or no name.

        `created`: for a study that was made elsewhere.
        """
        name = checked_name(name)

        def work(cursor: Cursor, database: Database) -> None:
            if cursor.execute("SELECT 1 FROM studies WHERE name = $name", {"name": name}).fetchall():
                raise InputError(
                    f"There is a study {name!r} already.",
                    f"Choose another --name, or delete it: study delete {name!r}.",
                    field="name",
                )
            highest = cursor.execute("SELECT coalesce(max(id), 0) FROM studies").fetchall()[0][0]
            now = database.tick(after=int(highest))
            cursor.execute(
                f"INSERT INTO studies ({_HEAD}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    now, name, _stored(model), _dump(settings), _dump(plan), _dump(provenance), state, "",
                    _dump(progress), False, now if created is None else int(created), now,
                ],
            )  # fmt: skip
            _insert(cursor, now, parts)

        self._write(work)

    def commit(self, name: str, parts: Sequence[tuple[str, int, bytes]], *, progress: Mapping[str, Any]) -> StudyRecord:
        """Add parts (stage, number, payload) and note how far the study is, in one transaction; the record after it.

        A part that is there already is an error: a batch is committed once.
        """

        def work(cursor: Cursor, database: Database) -> StudyRecord:
            study = self._id(cursor, name)
            for stage, number, _ in parts:
                query = "SELECT 1 FROM study_parts WHERE study = ? AND stage = ? AND number = ?"
                if cursor.execute(query, [study, stage, number]).fetchall():
                    raise StoreError(
                        f"Part {number} of stage {stage} of the study {name!r} is there already.",
                        "Another process works on the same study; let one of them go on.",
                    )
            _insert(cursor, study, parts)
            query = "UPDATE studies SET progress = ?, updated = ? WHERE id = ?"
            cursor.execute(query, [_dump(progress), database.tick(), study])
            return _record(cursor.execute(f"SELECT {_HEAD} FROM studies WHERE id = ?", [study]).fetchall()[0])

        return self._write(work)

    def update(self, name: str, **values: Any) -> None:
        """Set `state`, `note`, `model`, `plan`, `provenance`, `progress` or `stop` of a study, in one transaction."""
        unknown = set(values) - {"state", "note", "model", "plan", "provenance", "progress", "stop"}
        assert not unknown, unknown
        plain = {key: _dump(v) if key in ("plan", "provenance", "progress") else v for key, v in values.items()}

        def work(cursor: Cursor, database: Database) -> None:
            study = self._id(cursor, name)
            assigned = ", ".join(f"{column} = ?" for column in (*plain, "updated"))
            cursor.execute(f"UPDATE studies SET {assigned} WHERE id = ?", [*plain.values(), database.tick(), study])

        self._write(work)

    def rename(self, name: str, new: str) -> None:
        """Give a study another name."""
        new = checked_name(new)

        def work(cursor: Cursor, database: Database) -> None:
            study = self._id(cursor, name)
            if cursor.execute("SELECT 1 FROM studies WHERE name = ? AND id <> ?", [new, study]).fetchall():
                raise InputError(f"There is a study {new!r} already.", "Choose another name.", field="name")
            cursor.execute("UPDATE studies SET name = ? WHERE id = ?", [new, study])

        self._write(work)

    def delete(self, name: str) -> None:
        """Remove a study with everything that belongs to it."""

        def work(cursor: Cursor, database: Database) -> None:
            study = self._id(cursor, name)
            cursor.execute("DELETE FROM study_parts WHERE study = ?", [study])
            cursor.execute("DELETE FROM studies WHERE id = ?", [study])

        self._write(work)

    # -- inside -----------------------------------------------------------------------------------------------------

    def _id(self, cursor: Cursor, name: str) -> int:
        found = cursor.execute("SELECT id FROM studies WHERE name = $name", {"name": _stored(name)}).fetchall()
        if not found:
            raise self._unknown(name)
        return int(found[0][0])

    def _unknown(self, name: str) -> InputError:
        return InputError(f"There is no study {name!r}.", "`python -m core study list` lists them.", field="name")


def checked_name(name: str) -> str:
    """A study's name without white space at its ends. Raises InputError for one that is none."""
    name = name.strip()
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise InputError(
            f"The study's name is {name!r}." if len(name) <= MAX_NAME else "The study's name is too long.",
            f"Give it a name of 1 to {MAX_NAME} characters that can be printed: --name NAME.",
            field="name",
        )
    return name


def _insert(cursor: Cursor, study: int, parts: Sequence[tuple[str, int, bytes]]) -> None:
    for stage, number, payload in parts:
        cursor.execute("INSERT INTO study_parts VALUES (?, ?, ?, ?)", [study, stage, int(number), payload])


def _record(row: tuple) -> StudyRecord:
    study, name, model, settings, plan, provenance, state, note, progress, stop, created, updated = row
    return StudyRecord(
        id=int(study),
        name=name,
        model=model,
        settings=json.loads(settings),
        plan=json.loads(plan),
        provenance=json.loads(provenance),
        state=state,
        note=note,
        progress=json.loads(progress),
        stop=bool(stop),
        created=int(created),
        updated=int(updated),
    )


def _dump(value: Any) -> str:
    return json.dumps(value)


def _stored(text: str) -> str:
    """A text as DuckDB can hold it (a damaged one cannot be a key, and finds nothing)."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
