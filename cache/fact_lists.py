"""Named lists of facts in the store: what a person uploaded, typed or chose. Never evicted, gone only when deleted.

Knows names and bytes; not what a fact is. As with studies, the file is open only while a method runs (or as long as a
`Store` of the same process holds it).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from core.errors import InputError

from .borrowed import Borrowed
from .database import Database
from .migrations import Cursor
from .studies import MAX_NAME

_HEAD = "id, name, n, note, bytes, created, updated"


@dataclass(frozen=True)
class ListRecord:
    """One list without its content. `id` stays, names can change; `n`: how many facts; `note`: where they come from;
    `bytes`: of the content as stored; `created`, `updated`: microseconds since 1970, `updated` grows with every
    change."""

    id: int
    name: str
    n: int
    note: str
    bytes: int
    created: int
    updated: int


class FactLists(Borrowed):
    """All lists of one store. Methods may be called from any thread; what they raise for a person is a StoreError, or
    an InputError where a name is wrong, taken or unknown."""

    def all(self) -> list[ListRecord]:
        """Every list, in alphabetical order."""
        rows = self._read(f"SELECT {_HEAD} FROM fact_lists ORDER BY lower(name), name")
        return [ListRecord(*row) for row in rows]

    def find(self, name: str) -> ListRecord | None:
        """The list of that name, or None."""
        rows = self._read(f"SELECT {_HEAD} FROM fact_lists WHERE name = $name", {"name": _stored(name)})
        return ListRecord(*rows[0]) if rows else None

    def get(self, name: str) -> tuple[ListRecord, bytes]:
        """A list and its content. Raises InputError where there is none of that name."""
        query = f"SELECT {_HEAD}, payload FROM fact_lists WHERE name = $name"
        rows = self._read(query, {"name": _stored(name)})
        if not rows:
            raise unknown(name)
        return ListRecord(*rows[0][:-1]), bytes(rows[0][-1])

    def put(self, name: str, payload: bytes, *, n: int, note: str = "", replace: bool = False) -> ListRecord:
        """A list under a new name, in one transaction; with `replace` it takes the place of one that is there."""
        name = checked_name(name)

        def work(cursor: Cursor, database: Database) -> ListRecord:
            found = cursor.execute("SELECT id, created FROM fact_lists WHERE name = ?", [name]).fetchall()
            if found and not replace:
                raise taken(name)
            now = self._tick(cursor, database)
            number, created = found[0] if found else (now, now)
            record = ListRecord(number, name, int(n), _stored(note), len(payload), created, now)
            _write(cursor, record, payload)
            return record

        return self._write(work)

    def change(self, name: str, work: Callable[[bytes], tuple[bytes, int]]) -> ListRecord:
        """Put what `work` makes of a list's content, (content, how many facts), in its place: read and written in one
        transaction, so that no change in between is lost. `work` may be called more than once."""

        def both(cursor: Cursor, database: Database) -> ListRecord:
            query = f"SELECT {_HEAD}, payload FROM fact_lists WHERE name = ?"
            found = cursor.execute(query, [_stored(name)]).fetchall()
            if not found:
                raise unknown(name)
            old = ListRecord(*found[0][:-1])
            payload, n = work(bytes(found[0][-1]))
            now = self._tick(cursor, database)
            record = ListRecord(old.id, old.name, int(n), old.note, len(payload), old.created, now)
            _write(cursor, record, payload)
            return record

        return self._write(both)

    def rename(self, name: str, new: str) -> None:
        """Give a list another name."""
        new = checked_name(new)

        def work(cursor: Cursor, database: Database) -> None:
            found = cursor.execute("SELECT id FROM fact_lists WHERE name = ?", [_stored(name)]).fetchall()
            if not found:
                raise unknown(name)
            if cursor.execute("SELECT 1 FROM fact_lists WHERE name = ? AND id <> ?", [new, found[0][0]]).fetchall():
                raise taken(new)
            cursor.execute("UPDATE fact_lists SET name = ? WHERE id = ?", [new, found[0][0]])

        self._write(work)

    def delete(self, name: str) -> None:
        """Remove a list."""

        def work(cursor: Cursor, database: Database) -> None:
            if not cursor.execute("SELECT 1 FROM fact_lists WHERE name = ?", [_stored(name)]).fetchall():
                raise unknown(name)
            cursor.execute("DELETE FROM fact_lists WHERE name = ?", [_stored(name)])

        self._write(work)

    # -- inside -----------------------------------------------------------------------------------------------------

    @staticmethod
    def _tick(cursor: Cursor, database: Database) -> int:
        query = "SELECT coalesce(max(greatest(id, updated)), 0) FROM fact_lists"
        return database.tick(after=int(cursor.execute(query).fetchall()[0][0]))


def checked_name(name: str) -> str:
    """A list's name without white space at its ends. Raises InputError for one that is none."""
    name = name.strip()
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise InputError(
            f"The list's name is {name!r}." if len(name) <= MAX_NAME else "The list's name is too long.",
            f"Give it a name of 1 to {MAX_NAME} characters that can be printed.",
            field="name",
        )
    return _stored(name)


def unknown(name: str) -> InputError:
    """There is no list of that name."""
    return InputError(
        f"There is no list of facts {name!r} in this store.",
        "It was renamed, deleted, or never here; the Library page shows those that are.",
        field="facts",
    )


def taken(name: str) -> InputError:
    """There is a list of that name already."""
    return InputError(f"There is a list of facts {name!r} already.", "Choose another name.", field="name")


def _write(cursor: Cursor, record: ListRecord, payload: bytes) -> None:
    cursor.execute("DELETE FROM fact_lists WHERE id = ?", [record.id])
    cursor.execute(
        f"INSERT INTO fact_lists ({_HEAD}, payload) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [
            record.id, record.name, record.n, record.note, record.bytes, record.created, record.updated, payload,
        ],
    )  # fmt: skip


def _stored(text: str) -> str:
    """A text as DuckDB can hold it (a damaged one cannot be a key, and finds nothing)."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
