"""One open DuckDB file, shared by all threads of this process: connections, transactions, the one writer, faults.

Knows files, locks and when to migrate; not what is in the tables. Everything raised for a person is a StoreError.
"""

from __future__ import annotations

import contextlib
import glob
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import duckdb

from core.errors import StoreBusy, StoreError

from . import faults
from .lending import AWAY, Lender, patiently
from .migrations import Cursor, migrate

T = TypeVar("T")

_BLOCK_SIZE = 16384
"""Bytes. Small, for a table takes at least one block per column, and there is a table per shelf (shelves.py)."""

_CONFIG = {
    "default_block_size": str(_BLOCK_SIZE),
    # Queries here are small, and the processor is the model's.
    "threads": "1",
    # Nothing is fetched from a network, and no Python variable is mistaken for a table.
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",
}
_ATTEMPTS = 6
_PATIENCE = 10.0
"""Seconds that a use of a lent file waits for its return."""

_KEPT = "32MB"
"""Of the file's blocks in memory after `let_go`. What is not in it yet is less: DuckDB's log has at most 16 MB."""

_INTERRUPTED = "Query interrupted"
"""What DuckDB's RuntimeError says where Ctrl+C fell into one of its queries: it takes the KeyboardInterrupt's place."""


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl+C is a KeyboardInterrupt, whatever DuckDB makes of it."""
    try:
        yield
    except RuntimeError as error:
        if str(error) != _INTERRUPTED:
            raise
        raise KeyboardInterrupt from error


_open: dict[str, Database] = {}
_open_lock = threading.Lock()


def acquire(path: Path) -> Database:
    """The open database of a file: the one this process has already, or a new one. Give it back with `release`."""
    key = os.path.realpath(path)
    with _open_lock:
        database = _open.get(key)
        if database is None:
            database = Database(path)
            database.key = key
            _open[key] = database
        database.holders += 1
        return database


def release(database: Database) -> None:
    """Undo one `acquire`; the file is closed (and its lock given up) with the last one."""
    with _open_lock:
        database.holders -= 1
        if database.holders == 0:
            _open.pop(database.key, None)
            database.close()


def let_go() -> None:
    """Give back the memory in which DuckDB keeps blocks of the open files for later: of itself it keeps all it has read
    or written, up to four fifths of the machine's memory."""
    for database in list(_open.values()):
        database.let_go()


class Database:
    """The connection to one file. Readers run side by side; one writer at a time; replacing the file waits for all.

    After damage or an error that DuckDB does not recover from, the connection is dropped and the next use opens
    the file again (a new one if the damaged one was set aside).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.key = ""
        self.holders = 0
        self.version = 0
        """Another number after everything that is written here, and after the file was closed: what was read at the
        same version still holds."""
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._gate = threading.Condition(threading.RLock())  # guards all that follows, but the write lock
        self._busy = 0
        self._replacing = False
        self._last_tick = 0
        self._write_lock = threading.RLock()
        self._lender: Lender | None = None
        self._away_until = 0.0
        with self._gate:
            self._connect()

    def tick(self, *, after: int = 0) -> int:
        """A number never given before, above `after`: microseconds since 1970, or one more than the last."""
        with self._gate:
            self._last_tick = max(self._last_tick + 1, after + 1, time.time_ns() // 1000)
            return self._last_tick

    def lend(self) -> None:
        """From now on, close the file for a moment whenever another process waits for it and nobody here uses it. The
        next use opens it again, waiting for its return."""
        with self._gate:
            if self._lender is None:
                self._lender = Lender(self.path, self._lend_now)

    def let_go(self) -> None:
        """Keep no more than `_KEPT` in memory, if nobody uses the file just now. It is DuckDB's limit for that moment
        only, for there is work that cannot do with so little."""
        with self._gate, contextlib.suppress(duckdb.Error):  # what could not be given back stays
            if self._connection is None or self._busy or self._replacing:
                return
            with contextlib.closing(self._connection.cursor()) as cursor:
                try:
                    cursor.execute(f"SET memory_limit = '{_KEPT}'")
                finally:
                    cursor.execute("RESET memory_limit")

    # -- transactions ---------------------------------------------------------------------------------------

    def read(self, work: Callable[[Cursor], T]) -> T:
        """Run `work` on a cursor of its own in one transaction, so that all its queries see the same state."""
        return self._run(work)

    def write(self, work: Callable[[Cursor], T]) -> T:
        """Run `work` as the only writer in one transaction: all of it is kept, or, if it raises, nothing.

        It is repeated when DuckDB reports a conflict, so it must not keep state of its own.
        """
        with self._write_lock:
            for attempt in range(_ATTEMPTS):
                try:
                    return self._run(work)
                except duckdb.Error as error:  # a conflict: `_run` explains all others
                    if attempt == _ATTEMPTS - 1:
                        raise faults.explain(error, self.path) from error
                    time.sleep(0.01 * 2**attempt)
                finally:
                    self.version += 1
        raise AssertionError("unreachable")

    @_interruptible()
    def compact(self) -> None:
        """Rewrite the file without its free space. Waits for readers, who then go on with the new file.

        Needs room on the disk for a second copy meanwhile; the old file stays until the new one is complete.
        """
        fresh = self.path.with_name(f"{self.path.name}.compact-{os.getpid()}")
        with self._write_lock, self._exclusive():
            connection = self._back()
            try:
                _remove(fresh)
                cursor = connection.cursor()
                name = cursor.execute("SELECT current_database()").fetchall()[0][0].replace('"', '""')
                cursor.execute(f"ATTACH {_quoted(str(fresh))} AS fresh (BLOCK_SIZE {_BLOCK_SIZE})")
                cursor.execute(f'COPY FROM DATABASE "{name}" TO fresh')
                cursor.execute("DETACH fresh")
                cursor.close()
                self._disconnect()  # writes the log into the old file, so that none is left beside the new one
                os.replace(fresh, self.path)
            except FileNotFoundError as error:  # see `_open_current`
                raise StoreBusy(
                    f"The store {self.path} was not made smaller: another process began to use it.", "Try again later."
                ) from error
            except (duckdb.Error, OSError) as error:
                raise self._fault(error, connection) from error  # before the connection goes: damage is set aside
            finally:
                self._disconnect()  # the copy may be attached still
                _remove(fresh)

    def size(self) -> int:
        """Bytes that the file and its log take on the disk."""
        total = 0
        for path in (self.path, _log_of(self.path)):
            with contextlib.suppress(OSError):
                total += path.stat().st_size
        return total

    def close(self) -> None:
        """Close the file after the work in progress is done."""
        if self._lender is not None:
            self._lender.stop()
        with self._write_lock, self._exclusive():
            self._disconnect()

    # -- inside -----------------------------------------------------------------------------------------------

    @_interruptible()
    def _run(self, work: Callable[[Cursor], T]) -> T:
        """One transaction. Raises StoreError for all that DuckDB and the disk report, but conflicts as they are."""
        with self._gate:
            # After a fault the old connection lives on in the cursors of others: it must be gone before the next.
            while self._replacing or (self._connection is None and self._busy):
                self._gate.wait()
            connection = self._back()
            cursor = connection.cursor()
            self._busy += 1
        try:
            return _transaction(cursor, work)
        except (duckdb.Error, OSError) as error:
            if faults.kind(error) == "conflict":
                raise
            raise self._fault(error, connection) from error
        finally:
            cursor.close()
            with self._gate:
                self._busy -= 1
                self._gate.notify_all()

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        with self._gate:
            while self._replacing:
                self._gate.wait()
            self._replacing = True
            while self._busy:
                self._gate.wait()
        try:
            yield
        finally:
            with self._gate:
                self._replacing = False
                self._gate.notify_all()

    def _lend_now(self) -> None:
        with self._gate:
            if self._connection is not None and not self._busy and not self._replacing:
                self._disconnect()
                self._away_until = time.monotonic() + AWAY

    def _back(self) -> duckdb.DuckDBPyConnection:
        """The connection; a file that was lent is waited for."""
        if self._connection is not None or self._lender is None:
            return self._connect()
        time.sleep(max(0.0, self._away_until - time.monotonic()))  # or who waits would never have it
        return patiently(self._connect, _PATIENCE)

    @_interruptible()
    def _connect(self) -> duckdb.DuckDBPyConnection:
        with self._gate:
            if self._connection is None:
                try:
                    _make_folder(self.path)
                    _check_place(self.path)
                    if not self.path.exists():
                        _create(self.path)
                    self._connection = _open_current(self.path)
                except (duckdb.Error, OSError) as error:
                    raise self._fault(error, None) from error
            return self._connection

    def _disconnect(self) -> None:
        with self._gate:
            if self._connection is not None:
                connection, self._connection = self._connection, None
                self.version += 1
                with contextlib.suppress(duckdb.Error):  # one that broke reports its fault once more
                    connection.close()

    def _fault(self, error: Exception, connection: duckdb.DuckDBPyConnection | None) -> StoreError:
        """The StoreError for what happened on `connection`; a damaged file is set aside, by the first who meets it."""
        damaged = faults.kind(error) == "damaged"
        with self._gate:
            if connection is self._connection and (damaged or faults.breaks_connection(error)):
                self._disconnect()
                if damaged:
                    with contextlib.suppress(OSError):
                        return faults.set_aside_message(self.path, _set_aside(self.path))
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


def _open_current(path: Path) -> duckdb.DuckDBPyConnection:
    """Open the file that bears the name, and see to it that it still does: a process that compacts closes it for the
    moment before it puts its copy in its place, and what was written to the old one then would be lost. So whoever
    opens it takes the copy away, and the other gives up; or the copy is there already, and is opened instead. Copies
    of processes that were killed go in the same way.
    """
    while True:
        before = os.stat(path)
        connection = _open_file(path)
        for copy in path.parent.glob(f"{glob.escape(path.name)}.compact-*"):
            _remove(copy)
        if os.path.samestat(before, os.stat(path)):
            return connection
        connection.close()


def _open_file(path: Path) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(str(path), config=_CONFIG)
    try:
        migrate(connection.cursor())
    except StoreError as error:
        connection.close()
        raise StoreError(f"{path}: {error.what}", error.next) from error
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


def _check_place(path: Path) -> None:
    """Raises StoreError where something else than a file is in the store's place."""
    if path.is_dir():
        raise StoreError(
            f"In the place of the store {path} there is a folder.",
            "Move it away, or set EXPERTSCOPE_HOME to another folder.",
        )
    if path.is_symlink() and not path.exists():
        raise StoreError(
            f"The store {path} is a link to {os.readlink(path)}, which is not there.",
            "Bring back what it leads to (a disk?), remove the link, or set EXPERTSCOPE_HOME to another folder.",
        )


def _log_of(path: Path) -> Path:
    return path.with_name(path.name + ".wal")


def _remove(path: Path) -> None:
    for name in (path, _log_of(path)):
        with contextlib.suppress(FileNotFoundError):
            os.remove(name)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
