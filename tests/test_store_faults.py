"""The store when things go wrong: other processes, kill -9, damage, other schemas, no room, no permission."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import duckdb
import pytest
from store_values import MODEL, answer, parts_there, payload, rows, same

from cache import Store, database, faults, migrations
from core.errors import ExpertScopeError, StoreBusy, StoreError

ROOT = Path(__file__).resolve().parent.parent


def python(code: str, *arguments: object, **options) -> subprocess.Popen:
    """Start Python on `code` with the store's modules and these test helpers importable."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, **options)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "store.duckdb"


# -- other processes -------------------------------------------------------------------------------------------------


def test_a_second_process_is_told_who_has_the_store(path):
    with Store.open(path) as store:
        store.write(model=MODEL, **answer("a"))
        second = python(
            """
            import sys
            from cache import Store
            from core.errors import StoreError
            try:
                Store.open(sys.argv[1])
            except StoreError as error:
                print(error)
            """,
            path,
        )
        said, _ = second.communicate(timeout=60)
        assert second.returncode == 0
        assert f"PID {os.getpid()}" in said and "EXPERTSCOPE_HOME" in said and str(path) in said
        assert "Traceback" not in said and "duckdb.org" not in said
        assert parts_there(store, "a") == [True] * 5


def test_the_store_is_free_again_after_the_other_process_ended(path):
    code = """
        import sys
        from cache import Store
        store = Store.open(sys.argv[1])
        print("open", flush=True)
        input()
    """
    other = python(code, path, stdin=subprocess.PIPE)
    assert other.stdout.readline() == "open\n"
    with pytest.raises(StoreError, match=f"PID {other.pid}"):
        Store.open(path)
    other.communicate("\n", timeout=60)
    with Store.open(path) as store:
        assert len(store.usage()) == 0


def test_processes_that_make_the_store_at_the_same_time_make_one(path):
    code = """
        import sys, time
        from cache import Store
        from core.errors import StoreError
        while time.time() < float(sys.argv[2]):
            pass
        try:
            Store.open(sys.argv[1]).close()
        except StoreError as error:
            print(error)
    """
    others = [python(code, path, time.time() + 3) for _ in range(3)]
    said = "".join(other.communicate(timeout=60)[0] for other in others)
    assert [other.returncode for other in others] == [0, 0, 0]
    assert "damaged" not in said and all("in use by" in line for line in said.splitlines())
    with Store.open(path) as store:
        store.write(model=MODEL, **answer("a"))
        assert parts_there(store, "a") == [True] * 5
    assert [file.name for file in path.parent.iterdir()] == ["store.duckdb"]


def test_kill_minus_nine_loses_nothing_that_was_acknowledged(path):
    """Five times: a process writes answers, saying so after each, and is killed while at it."""
    code = """
        import sys
        from cache import Store
        from store_values import MODEL, answer
        store = Store.open(sys.argv[1], limit_bytes=10**9)
        n = int(sys.argv[2])
        while True:
            store.write(model=MODEL, **answer(f"a{n}", seed=10 * n, size=100_000))
            print(n, flush=True)
            n += 1
    """
    written = 0
    for life in range(5):
        start = written
        process = python(code, path, start)
        for line in process.stdout:
            written = int(line) + 1
            if written - start == 3 + life % 2:
                time.sleep(0.004 * life)  # into the middle of the next write
                os.kill(process.pid, signal.SIGKILL)
                break
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
        with Store.open(path) as store:
            for n in range(written):
                assert parts_there(store, f"a{n}") == [True] * 5
                assert store.get_run(f"a{n}-run1").payload == payload(10 * n + 1, 100_000)
                assert same(store.get_rows(f"a{n}-pair1", "layer"), rows(10 * n + 1))
            unsaid = parts_there(store, f"a{written}")
            assert all(unsaid) or not any(unsaid)
            written += all(unsaid)
    assert 17 <= written <= 22


def test_killed_while_making_the_file_leaves_none_behind(path):
    code = """
        import os, signal, sys
        from cache import Store, database
        database.os.link = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        Store.open(sys.argv[1])
    """
    process = python(code, path)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL and not path.exists()
    with Store.open(path) as store:
        assert len(store.usage()) == 0


def test_the_copy_of_a_process_that_was_killed_while_compacting_goes(path):
    code = """
        import os, signal, sys
        from cache import Store, database
        from store_values import MODEL, answer
        store = Store.open(sys.argv[1])
        store.write(model=MODEL, **answer("a"))
        database.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        store.compact()
    """
    assert python(code, path).wait(60) == -signal.SIGKILL
    assert any(".compact-" in file.name for file in path.parent.iterdir())
    with Store.open(path) as store:
        assert parts_there(store, "a") == [True] * 5
        assert not any(".compact-" in file.name for file in path.parent.iterdir())


def test_what_another_process_writes_in_the_moment_of_compacting_is_kept(path, monkeypatch):
    code = """
        import sys
        from cache import Store
        from store_values import MODEL, answer
        with Store.open(sys.argv[1]) as store:
            store.write(model=MODEL, **answer("theirs"))
    """
    replace = os.replace

    def late(*names):
        assert python(code, path).wait(60) == 0
        replace(*names)

    with Store.open(path) as store:
        store.write(model=MODEL, **answer("ours"))
        with monkeypatch.context() as patched:
            patched.setattr(database.os, "replace", late)
            with pytest.raises(StoreBusy, match="another process began to use it"):
                store.compact()
        assert parts_there(store, "ours") == parts_there(store, "theirs") == [True] * 5
        store.compact()
        assert parts_there(store, "ours") == parts_there(store, "theirs") == [True] * 5
    assert [file.name for file in path.parent.iterdir()] == ["store.duckdb"]


def test_a_file_that_was_replaced_while_it_was_opened_is_opened_anew(path, monkeypatch):
    for name in ("old", "new"):
        with Store.open(path.with_name(f"{name}.duckdb")) as store:
            store.write(model=MODEL, **answer(name))
    os.rename(path.with_name("old.duckdb"), path)
    opened = database._open_file
    turns = []

    def slowly(file):
        connection = opened(file)
        if not turns:
            os.replace(path.with_name("new.duckdb"), path)
        turns.append(file)
        return connection

    monkeypatch.setattr(database, "_open_file", slowly)
    with Store.open(path) as store:
        assert len(turns) == 2 and parts_there(store, "new") == [True] * 5


# -- schemas ---------------------------------------------------------------------------------------------------------


def test_migrations_are_numbered_in_order_and_a_failing_one_changes_nothing(path, monkeypatch):
    assert [number for number, _, _ in migrations.MIGRATIONS] == list(range(1, migrations.LATEST + 1))

    def half(cursor):
        cursor.execute("CREATE TABLE left_over (i INTEGER)")
        raise RuntimeError("half way")

    with Store.open(path) as store:
        store.write(model=MODEL, **answer("a"))
    with monkeypatch.context() as patched:
        patched.setattr(migrations, "MIGRATIONS", [*migrations.MIGRATIONS, (99, "half", half)])
        patched.setattr(migrations.migrate, "__kwdefaults__", {"upto": 99})
        with pytest.raises(RuntimeError, match="half way"):
            Store.open(path)
    with Store.open(path) as store:
        assert parts_there(store, "a") == [True] * 5
        tables = "SELECT count(*) FROM duckdb_tables() WHERE table_name = 'left_over'"
        assert store._database.read(lambda cursor: cursor.execute(tables).fetchall()) == [(0,)]


def test_a_newer_schema_is_refused_and_left_untouched(path):
    Store.open(path).close()
    with duckdb.connect(str(path)) as newer:
        newer.execute("INSERT INTO migrations VALUES (?, 'from the future', 0)", [migrations.LATEST + 5])
    before = path.read_bytes()
    with pytest.raises(StoreError, match=f"newer ExpertScope .schema {migrations.LATEST + 5}") as caught:
        Store.open(path)
    assert "Update ExpertScope" in caught.value.next
    assert path.read_bytes() == before and [file.name for file in path.parent.iterdir()] == [path.name]


def test_someone_elses_database_is_refused_and_left_untouched(path):
    path.parent.mkdir()
    with duckdb.connect(str(path)) as other:
        other.execute("CREATE TABLE accounts (name VARCHAR)")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="not a store of ExpertScope"):
        Store.open(path)
    assert path.read_bytes() == before


# -- damage ----------------------------------------------------------------------------------------------------------


def full_store(path: Path) -> bytes:
    with Store.open(path) as store:
        store.write(model=MODEL, **answer("a", size=200_000))
    return path.read_bytes()


def flipped(data: bytes, start: int = 0) -> bytes:
    return data[:start] + bytes(byte ^ 255 if i % 97 == 0 else byte for i, byte in enumerate(data[start:]))


@pytest.mark.parametrize(
    "damage",
    [lambda data: b"not a database" * 1000, lambda data: b"", lambda data: data[:20_000], flipped],
    ids=["other contents", "empty", "cut short", "flipped bits"],
)
def test_a_damaged_file_is_set_aside_and_a_new_one_made(path, damage):
    data = damage(full_store(path))
    path.write_bytes(data)
    with pytest.raises(StoreError, match="damaged") as caught:
        Store.open(path)
    assert not path.exists()
    (aside,) = path.parent.iterdir()
    assert aside.name in str(caught.value) and aside.read_bytes() == data
    with Store.open(path) as store:
        assert not any(parts_there(store, "a"))
        store.write(model=MODEL, **answer("a"))
        assert parts_there(store, "a") == [True] * 5
    assert aside.read_bytes() == data


def test_damage_met_while_reading_is_told_and_the_same_store_goes_on(path):
    data = full_store(path)
    where = data.index(payload(0, 200_000)[:64])  # inside a payload: opening does not touch it
    damaged = data[: where + 8000] + flipped(data[where + 8000 : where + 60_000]) + data[where + 60_000 :]
    path.write_bytes(damaged)
    with Store.open(path) as store:
        assert store.get_manifest("a") is not None
        with pytest.raises(StoreError, match="damaged") as caught:
            store.get_run("a-run0")
        (aside,) = (file for file in path.parent.iterdir() if "damaged" in file.name)
        assert aside.name in str(caught.value)
        assert store.get_manifest("a") is None
        store.write(model=MODEL, **answer("b"))
        assert parts_there(store, "b") == [True] * 5
    assert aside.read_bytes() == damaged


def test_damage_met_while_compacting_is_set_aside_as_well(path):
    data = full_store(path)
    where = data.index(payload(0, 200_000)[:64]) + 8000
    damaged = data[:where] + flipped(data[where : where + 50_000]) + data[where + 50_000 :]
    path.write_bytes(damaged)
    with Store.open(path) as store:
        with pytest.raises(StoreError, match="It was set aside as store.damaged"):
            store.compact()
        (aside,) = (file for file in path.parent.iterdir() if file != path)
        assert aside.read_bytes() == damaged
        store.write(model=MODEL, **answer("b"))
        store.compact()
        assert parts_there(store, "b") == [True] * 5


def test_a_torn_log_loses_at_most_the_last_write(path):
    """The log of a killed process, cut at many lengths: always a readable store with whole answers."""
    code = """
        import os, sys
        from cache import Store
        from store_values import MODEL, answer
        store = Store.open(sys.argv[1])
        for n in range(3):
            store.write(model=MODEL, **answer(f"a{n}", seed=10 * n, size=20_000))
        os._exit(0)
    """
    assert python(code, path).wait(60) == 0
    log = path.with_name(path.name + ".wal")
    main, torn = path.read_bytes(), log.read_bytes()
    assert len(torn) > 100_000
    seen = set()
    for share in (1.0, 0.95, 0.7, 0.5, 0.3, 0.05):
        path.write_bytes(main)
        log.write_bytes(torn[: int(len(torn) * share)])
        with Store.open(path) as store:
            there = [parts_there(store, f"a{n}") for n in range(3)]
        assert all(all(parts) or not any(parts) for parts in there)
        count = sum(map(all, there))
        assert there[:count] == [[True] * 5] * count  # an earlier write is never missing where a later one is there
        seen.add(count)
    assert {0, 3} <= seen


def test_a_log_without_its_store_is_not_read_into_a_new_one(path):
    full_store(path)
    path.unlink()
    log = path.with_name(path.name + ".wal")
    log.write_bytes(b"left over")
    with Store.open(path) as store:
        assert len(store.usage()) == 0
    assert not log.exists()
    assert [file.read_bytes() for file in path.parent.iterdir() if "damaged" in file.name] == [b"left over"]


# -- no room, no permission ------------------------------------------------------------------------------------------


def test_a_full_disk_is_told_and_nothing_is_half_written(path):
    """A limit on file sizes stands in for the full disk: the system refuses the write in the same way."""
    code = """
        import resource, signal, sys
        from cache import Store
        from core.errors import StoreError
        from store_values import MODEL, answer, parts_there
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        store = Store.open(sys.argv[1])
        store.write(model=MODEL, **answer("small"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
        try:
            store.write(model=MODEL, **answer("large", seed=5, size=3_000_000))
        except StoreError as error:
            print(error)
        print(all(parts_there(store, "small")), any(parts_there(store, "large")))
        store.write(model=MODEL, **answer("second", seed=7))
        print(all(parts_there(store, "second")))
        store.close()
    """
    process = python(code, path)
    said, _ = process.communicate(timeout=60)
    lines = said.splitlines()
    assert process.returncode == 0 and "is full" in lines[0] and "Free some space" in lines[0]
    assert lines[1:] == ["True False", "True"]
    with Store.open(path) as store:
        assert parts_there(store, "small") == parts_there(store, "second") == [True] * 5
        assert not any(parts_there(store, "large"))


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="cannot be made") as caught:
        Store.open(tmp_path / "file" / "store.duckdb")
    assert "EXPERTSCOPE_HOME" in caught.value.next


def test_a_folder_or_a_link_to_nowhere_in_the_store_s_place(path):
    path.mkdir(parents=True)
    with pytest.raises(StoreError, match="there is a folder") as caught:
        Store.open(path)
    assert "EXPERTSCOPE_HOME" in caught.value.next and path.is_dir()
    path.rmdir()
    path.symlink_to(path.parent / "gone" / "store.duckdb")
    with pytest.raises(StoreError, match="is a link to .*gone"):
        Store.open(path)
    assert [file.name for file in path.parent.iterdir()] == ["store.duckdb"]


@pytest.mark.parametrize("existing", [False, True], ids=["new", "existing"])
def test_no_permission(tmp_path, existing, monkeypatch):
    """Where the tests run as root, permissions do not bind: there the system's refusal is put in its place."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    path = folder / "store.duckdb"
    if existing:
        Store.open(path).close()
        path.chmod(0o444)
    folder.chmod(0o555)
    try:
        if os.geteuid() == 0:
            name = path if existing else path.with_name("store.duckdb.new-1")

            def refuse(*_args, **_options):
                raise duckdb.IOException(f'IO Error: Cannot open file "{name}": Permission denied')

            monkeypatch.setattr(duckdb, "connect", refuse)
        with pytest.raises(StoreError, match="no permission") as caught:
            Store.open(path)
        assert "EXPERTSCOPE_HOME" in caught.value.next
    finally:
        folder.chmod(0o755)


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (
            'IO Error: Could not set lock on file "/x": Conflicting lock is held in python3.11 (PID 12). See also',
            "locked",
        ),
        ('IO Error: The file "/x" exists, but it is not a valid DuckDB database file!', "damaged"),
        (
            "Corrupt database file: computed checksum 1 does not match stored checksum 2 in block at 0",
            "damaged",
        ),
        ('IO Error: Could not read enough bytes from file "/x": attempted to read 6 bytes', "damaged"),
        ("IO Error: Trying to read a database file with version number 99, but we can only read 64.", "newer"),
        ('IO Error: Could not write file "/x": No space left on device', "full"),
        ("TransactionContext Error: Failed to commit: Could not write file: No space left on device", "full"),
        ('IO Error: Cannot open file "/x": Permission denied', "denied"),
        ('IO Error: Cannot open file "/x": Read-only file system', "denied"),
        ("TransactionContext Error: Conflict on update!", "conflict"),
        ("TransactionContext Error: Catalog write-write conflict on create with shelf_1", "conflict"),
        ("Out of Memory Error: could not allocate block", "other"),
    ],
)
def test_faults_are_told_apart_by_duckdbs_messages(message, kind):
    assert faults.kind(duckdb.Error(message)) == kind
    error = faults.explain(duckdb.Error(message), Path("/somewhere/store.duckdb"))
    assert isinstance(error, ExpertScopeError) and error.exit_code == 1
    assert "/somewhere/store.duckdb" in error.what and error.next
