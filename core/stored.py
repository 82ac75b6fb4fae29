"""What the store holds, as the pages see it: traces and derived answers, their names and sizes, files of traces.

Knows manifests and requests; no SQL, no pages, no torch. Opening a trace is asking its request again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from . import formats
from .errors import InputError, StoreError
from .requests import TraceRequest
from .trace_archive import IMPORTED, checked_label, pack, unpack

_ROW_BYTES = 48  # as the store counts a row


@dataclass(frozen=True)
class StoredTrace:
    """One trace. `label`: the name that a person gave it; `created`: when it was computed (ISO, UTC); `bytes`: what it
    takes, with what it shares with other traces; `whole`: no part of it was evicted; `imported`: when it came from a
    file, or empty; `model`, `dtype`, `device`: what computed it; `replacements`: the subjects in the subject's place,
    one per draw, also where they were chosen."""

    key: str
    request: TraceRequest
    label: str
    model: str
    dtype: str
    device: str
    created: str
    bytes: int
    whole: bool
    imported: str
    replacements: tuple[str, ...] = ()


@dataclass(frozen=True)
class StoredDerived:
    """One derived answer. `facts`: how many it is about; `created`: when it was computed (ISO, UTC)."""

    key: str
    kind: str
    model: str
    facts: int
    settings: dict[str, Any]
    created: str
    bytes: int


class StoredDesk:
    """The answers of one store. Methods may be called from any thread; what they raise for a person is an
    ExpertScopeError."""

    def __init__(self, book: Any, store: Any, forget: Callable[[], None], *, store_error: str = "") -> None:
        """`book`: a `cache.holdings.Holdings`, or None (then `store_error` says why); `store`: a `cache.store.Store`;
        `forget`: called after something was deleted or came from a file, so that nobody goes on showing what was."""
        self._book, self._store, self._forget = book, store, forget
        self._store_error = store_error
        self._known: tuple[list[Any], list[StoredTrace]] | None = None

    def traces(self) -> list[StoredTrace]:
        """Every trace, the latest first."""
        held, known = self._held(), self._known
        if known is None or known[0] is not held:
            known = self._known = held, [_trace(one) for one in held]
        return known[1]

    def derived(self) -> list[StoredDerived]:
        """Every derived answer, the latest first."""
        if self._book is None:
            return []
        return [
            StoredDerived(
                held.key, held.kind, held.model, int(held.info.get("facts", 0)), dict(held.info.get("settings") or {}),
                str(held.info.get("created", "")), held.bytes,
            )
            for held in self._book.derived()
        ]  # fmt: skip

    def delete(self, keys: Iterable[str]) -> int:
        """Remove traces with everything that no other trace needs; how many that were."""
        n = self._stored().delete(keys)
        self._forget()
        return n

    def delete_derived(self, keys: Iterable[str]) -> int:
        """Remove derived answers; how many that were."""
        n = self._stored().delete_derived(keys)
        self._forget()
        return n

    def rename(self, key: str, label: str) -> None:
        """Give a trace a name; an empty one takes it away."""
        self._stored().label(key, checked_label(label))

    def export(self, keys: Iterable[str]) -> bytes:
        """Traces as one file, for `import_file` here or elsewhere."""
        wanted = set(keys)
        self._stored()
        return pack(self._store, [(held.label, dict(held.manifest)) for held in self._held() if held.key in wanted])

    def import_file(self, content: bytes) -> int:
        """Put the traces of a file into the store; how many. They are marked, and shown where this machine has no
        answer of its own. Raises `InputError` where the file is none, or larger than the store's limit."""
        book = self._stored()
        parcels = unpack(content)
        size = _ROW_BYTES * sum(len(table) for parcel in parcels for _, _, table, _ in parcel.rows)
        if size > self._store.limit:
            raise InputError(
                f"The file's traces take about {formats.size(size)}, more than the store's limit of "
                f"{formats.size(self._store.limit)}.",
                "Raise the limit, or export fewer traces.",
                field="file",
            )
        for parcel in parcels:
            self._store.write(model=parcel.model, runs=parcel.runs, rows=parcel.rows, manifests=parcel.manifests)
            for key, label in parcel.labels.items():
                book.label(key, label)
        self._forget()
        return sum(len(parcel.manifests) for parcel in parcels)

    def compact(self) -> None:
        """Make the store's file as small as its contents."""
        self._stored()
        self._store.compact()

    # -- inside -----------------------------------------------------------------------------------------------------

    def _held(self) -> list[Any]:
        return [] if self._book is None else self._book.answers()

    def _stored(self) -> Any:
        if self._book is None:
            raise StoreError(f"There is no store. {self._store_error}".strip())
        return self._book


def _trace(held: Any) -> StoredTrace:
    where = held.manifest["provenance"]
    return StoredTrace(
        key=held.key,
        request=TraceRequest.from_dict(held.manifest["request"]),
        label=held.label,
        model=where["model"],
        dtype=where["dtype"],
        device=where["device"],
        created=where["created"],
        bytes=held.bytes,
        whole=held.whole,
        imported=str(held.manifest.get(IMPORTED, "")),
        replacements=tuple(where.get("replacements") or ()),
    )
