"""One open DuckDB file, shared by all threads of this process: connections, transactions, the one writer, faults.

Knows files, locks and when to migrate; not what is in the tables. Everything raised for a person is a StoreError.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import duckdb

from core.errors import StoreError

from . import faults
from .migrations import Cursor, migrate

T = TypeVar("T")

_CONFIG = {
    # Small blocks: a table takes at least one per column, and there is a table per shelf (shelves.py).
    "default_block_size": "16384",
    # Nothing is fetched from a network, and no Python variable is mistaken for a table.
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",
}
_ATTEMPTS = 6

_open: dict[str, Database] = {}
_open_lock = threading.Lock()


def acquire(path: Path) -> Database:
    """The open database of a file: the one this process has already, or a new one. Give it back with `release`."""
    key = os.path.realpath(path)
    with _open_lock:
        database = _open.get(key)
        if database is None:
            database = Database(path)
            _open[key] = database
        database.holders += 1
        return database


def release(database: Database) -> None:
    """Undo one `acquire`; the file is closed (and its lock given up) with the last one."""
    with _open_lock:
        database.holders -= 1
        if database.holders == 0:
            _open.pop(os.path.realpath(database.path), None)
            database.close()


class Database:
    """The connection to one file. Readers run side by side; one writer at a time; replacing the file waits for all.

    After damage or an error that DuckDB does not recover from, the connection is dropped and the next use opens
    the file again (a new one if the damaged one was set aside).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.holders = 0
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._gate = threading.Condition()  # guards the connection and the two counts below
        self._busy = 0
        self._replacing = False
        self._write_lock = threading.RLock()
        with self._gate:
            self._connect()

    # -- transactions ---------------------------------------------------------------------------------------

    def read(self, work: Callable[[Cursor], T]) -> T:
        """Run `work` on a cursor of its own in one transaction, so that all its queries see the same state."""
        try:
            with self._cursor() as cursor:
                return _transaction(cursor, work)
        except (duckdb.Error, OSError) as error:
            raise self._fault(error) from error

    def write(self, work: Callable[[Cursor], T]) -> T:
        """Run `work` as the only writer in one transaction: all of it is kept, or, if it raises, nothing.

        It is repeated when DuckDB reports a conflict, so it must not keep state of its own.
        """
        with self._write_lock:
            for attempt in range(_ATTEMPTS):
                try:
                    with self._cursor() as cursor:
                        return _transaction(cursor, work)
                except (duckdb.Error, OSError) as error:
                    if faults.kind(error) != "conflict" or attempt == _ATTEMPTS - 1:
                        raise self._fault(error) from error
                    time.sleep(0.01 * 2**attempt)
        raise AssertionError("unreachable")

    def checkpoint(self) -> None:
        """Move what is in the log into the file, and give freed space back for reuse."""
        with self._write_lock:
            try:
                with self._cursor() as cursor:
                    cursor.execute("FORCE CHECKPOINT" if self._alone() else "CHECKPOINT")
            except duckdb.Error as error:
                if faults.kind(error) in ("full", "damaged") or faults.breaks_connection(error):
                    raise self._fault(error) from error
                # Otherwise a reader is at work: DuckDB writes its checkpoint by itself later.

    def compact(self) -> None:
        """Rewrite the file without its free space. Waits for readers, who then go on with the new file.

        Needs room on the disk for a second copy meanwhile; the old file stays until the new one is complete.
        """
        fresh = self.path.with_name(f"{self.path.name}.compact-{os.getpid()}")
        with self._write_lock, self._exclusive():
            try:
                _remove(fresh)
                cursor = self._connect().cursor()
                name = cursor.execute("SELECT current_database()").fetchall()[0][0]
                cursor.execute(f"ATTACH {_quoted(str(fresh))} AS fresh (BLOCK_SIZE 16384)")
                cursor.execute(f'COPY FROM DATABASE "{name.replace(chr(34), chr(34) * 2)}" TO fresh')
                cursor.execute("DETACH fresh")
                cursor.close()
                self._disconnect()  # writes the log into the old file, so that none is left beside the new one
                os.replace(fresh, self.path)
            except (duckdb.Error, OSError) as error:
                raise self._fault(error) from error
            finally:
                _remove(fresh)
                self._connect()

    def size(self) -> int:
        """Bytes that the file and its log take on the disk."""
        total = 0
        for path in (self.path, _log_of(self.path)):
            with contextlib.suppress(OSError):
                total += path.stat().st_size
        return total

    def close(self) -> None:
        """Close the file after the work in progress is done."""
        with self._write_lock, self._exclusive():
            self._disconnect()

    # -- inside -----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _cursor(self) -> Iterator[Cursor]:
        with self._gate:
            while self._replacing:
                self._gate.wait()
            cursor = self._connect().cursor()
            self._busy += 1
        try:
            yield cursor
        finally:
            cursor.close()
            with self._gate:
                self._busy -= 1
                self._gate.notify_all()

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        with self._gate:
            self._replacing = True
            while self._busy:
                self._gate.wait()
        try:
            yield
        finally:
            with self._gate:
                self._replacing = False
                self._gate.notify_all()

    def _alone(self) -> bool:
        with self._gate:
            return self._busy <= 1

    def _connect(self) -> duckdb.DuckDBPyConnection:
        if self._connection is None:
            try:
                _make_folder(self.path)
                if not self.path.exists():
                    _create(self.path)
                self._connection = _open_file(self.path)
            except (duckdb.Error, OSError) as error:
                raise self._fault(error) from error
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.close()

    def _fault(self, error: Exception) -> StoreError:
        damaged = faults.kind(error) == "damaged"
        if damaged or faults.breaks_connection(error):
            with contextlib.suppress(duckdb.Error):
                self._disconnect()
        if not damaged:
            return faults.explain(error, self.path)
        try:
            return faults.set_aside_message(self.path, _set_aside(self.path))
        except OSError:
            return faults.explain(error, self.path)


def _transaction(cursor: Cursor, work: Callable[[Cursor], T]) -> T:
    cursor.execute("BEGIN TRANSACTION")
    try:
        result = work(cursor)
        cursor.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(duckdb.Error):  # a failed COMMIT has rolled back by itself
            cursor.execute("ROLLBACK")
        raise
    return result


def _open_file(path: Path) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(str(path), config=_CONFIG)
    try:
        migrate(connection.cursor())
    except BaseException:
        connection.close()
        raise
    return connection


def _create(path: Path) -> None:
    """Make an empty store under another name and move it into place: no crash leaves half a file there.

    Where another process was faster, its file stays.
    """
    fresh = path.with_name(f"{path.name}.new-{os.getpid()}")
    if _log_of(path).exists():  # of a store that someone deleted; it must not be read into the new one
        _set_aside(path)
    _remove(fresh)
    try:
        _open_file(fresh).close()
        try:
            os.link(fresh, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            if not path.exists():
                os.replace(fresh, path)
    finally:
        _remove(fresh)


def _set_aside(path: Path) -> Path:
    """Rename the store's file and its log to a name not yet taken; return the new name."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    names = (f"{path.stem}.damaged-{stamp}{n}{path.suffix}" for n in ("", *(f"-{i}" for i in range(2, 1000))))
    aside = next(new for new in map(path.with_name, names) if not new.exists() and not _log_of(new).exists())
    for old, new in ((path, aside), (_log_of(path), _log_of(aside))):
        if old.exists():
            os.rename(old, new)
    return aside


def _make_folder(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except PermissionError:
        raise
    except OSError as error:
        raise StoreError(
            f"The folder {path.parent} for the store cannot be made: {error.strerror}.",
            "Set EXPERTSCOPE_HOME to a folder that you can write to.",
        ) from error


def _log_of(path: Path) -> Path:
    return path.with_name(path.name + ".wal")


def _remove(path: Path) -> None:
    for name in (path, _log_of(path)):
        with contextlib.suppress(FileNotFoundError):
            os.remove(name)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
