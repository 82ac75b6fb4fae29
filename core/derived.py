"""Questions about a model that are more than one trace: request in, result out, kept in the store as traces are.

What is computed stands in the modules that `KINDS` names, imported when they are first asked; here is only what all of
them have in common. Finding a stored answer needs neither a loaded model nor torch.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import io
import json
import logging
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from .errors import StoreError
from .identity import recall_identity
from .progress import SILENT, Progress
from .requests import Fact, ModelSpec, digest
from .tables import table_bytes

if TYPE_CHECKING:
    import pandas as pd

    from .moe import MoeModel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kind:
    """One kind of question. `title`: of its job, for people; `version`: raised whenever the same request means other
    numbers or other tables than before; `where`: `module:function` in this package, with the signature of `Answer`;
    `corrupts`: whether it takes corrupt runs."""

    title: str
    version: int
    where: str
    corrupts: bool = True


class Answer(Protocol):
    """What answers one kind: named tables and JSON values. It calls `progress.update` and `check` as a trace does, and
    `progress.pause()` between two sweeps. Facts that the model cannot take are left out and listed under
    `values["left_out"]` (case_id, subject, why), never dropped silently."""

    def __call__(
        self, model: MoeModel, request: DerivedRequest, *, store: Any, progress: Progress
    ) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]: ...


KINDS: dict[str, Kind] = {
    "site_map": Kind("Layer × token at another site", 1, ".cells.site_map:answer"),
    "coalition": Kind("Coalition of experts", 1, ".cells.coalition:answer"),
    "minimal_set": Kind("Minimal set", 1, ".cells.minimal_set:answer"),
    "cell_knockouts": Kind("Knockouts of a cell's experts", 1, ".cells.knockouts:answer", corrupts=False),
    "cell_controls": Kind("Controls of an expert", 1, ".cells.controls:answer"),
    "expert_writes": Kind("What an expert writes", 1, ".writes:answer"),
    "expert_size": Kind("Size of an expert's output", 1, ".expert_size:answer", corrupts=False),
    "expert_neurons": Kind("Neurons of an expert", 1, ".neurons:answer", corrupts=False),
    "steering": Kind("Steering an expert", 1, ".steering:answer", corrupts=False),
    "routing": Kind("Routing of many prompts", 1, ".routing_kinds:answer"),
    "routing_comparison": Kind("Routing of two sets compared", 2, ".routing_kinds:answer_comparison"),
    "expert_rescue": Kind("Rescue of all experts", 1, ".expert_rescue:answer"),
    "expert_knockout": Kind("Knocking the expert out", 1, ".expert_knockout:answer", corrupts=False),
    "validation": Kind("Validation of facts", 1, ".validation:answer"),
    "averages": Kind("Averages over facts", 1, ".averages.measure:cells"),
    "expert_averages": Kind("Experts over facts", 1, ".averages.measure:experts"),
}
"""Name → kind."""


@dataclass(frozen=True)
class DerivedRequest:
    """One question. `settings`: everything but model and facts that can change a number, as canonical JSON (see `of`);
    `facts`: those that it is about, in the order in which they count."""

    kind: str
    model: ModelSpec = field(default_factory=ModelSpec)
    settings: str = "{}"
    facts: tuple[Fact, ...] = ()

    @classmethod
    def of(cls, kind: str, model: ModelSpec, *, facts: Sequence[Fact] = (), **settings: Any) -> DerivedRequest:
        """A request with these settings: plain JSON values (tuples count as lists)."""
        text = json.dumps(settings, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return cls(kind, model, text, tuple(facts))

    def get(self) -> dict[str, Any]:
        """The settings."""
        return json.loads(self.settings)

    @property
    def title(self) -> str:
        """What a person calls it."""
        return KINDS[self.kind].title

    @functools.cached_property
    def about(self) -> str:
        """A digest of everything in the request but the model, and of the kind's version."""
        facts = [[getattr(fact, f.name) for f in dataclasses.fields(fact)] for fact in self.facts]
        return digest("derived", self.kind, KINDS[self.kind].version, self.settings, facts)

    @property
    def adds_noise(self) -> bool:
        """Whether noise on the subject's embeddings is part of how it is answered."""
        settings = self.get()
        sides = [side for name in ("a", "b") if isinstance(side := settings.get(name), dict)]
        return KINDS[self.kind].corrupts and any(
            side.get("corruption", "noise") == "noise" and "prompts" not in side and side.get("measure", True)
            for side in sides or [settings]
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` reads them back."""
        facts = [dataclasses.asdict(fact) for fact in self.facts]
        return {"kind": self.kind, "model": dataclasses.asdict(self.model), "settings": self.get(), "facts": facts}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> DerivedRequest:
        """The inverse of `to_dict`."""
        facts = [Fact(**fact) for fact in data["facts"]]
        return cls.of(data["kind"], ModelSpec(**data["model"]), facts=facts, **data["settings"])


@dataclass(frozen=True)
class DerivedResult:
    """The answer: named tables, JSON values, and where they come from. `cached`: it was there already."""

    request: DerivedRequest
    tables: dict[str, pd.DataFrame]
    values: dict[str, Any]
    provenance: dict[str, Any]
    cached: bool = False


class StoreLike(Protocol):
    """What this module needs of `cache.store.Store`."""

    def get_derived(self, key: str) -> bytes | None: ...
    def put_derived(self, key: str, *, model: str, kind: str, payload: bytes, info: dict[str, Any]) -> None: ...
    def get_verdict(self, key: str) -> dict[str, Any] | None: ...


def derive(
    model: MoeModel, request: DerivedRequest, *, store: Any = None, progress: Progress = SILENT
) -> DerivedResult:
    """Answer a request with a loaded model, from the store where it has the answer; store what is new."""
    request = dataclasses.replace(request, model=model.spec)
    key = _key(request, model.identity)
    found = None if store is None else _read(store, key, request)
    if found is not None:
        return found
    module, _, function = KINDS[request.kind].where.partition(":")
    answer: Answer = getattr(importlib.import_module(module, __package__), function)
    tables, values = answer(model, request, store=store, progress=progress)
    result = DerivedResult(request, tables, json.loads(json.dumps(values)), provenance_of(model, request))
    if store is None:
        return result
    info = {
        "settings": request.get(), "facts": len(request.facts), "model": dataclasses.asdict(model.spec),
        "created": result.provenance["created"],
    }  # fmt: skip
    try:
        store.put_derived(key, model=model.label, kind=request.kind, payload=pack(result), info=info)
    except StoreError as error:  # a full disk must not cost an answer that is there
        log.warning("not stored: %s", error)
        result.provenance["notes"].append(f"This answer could not be stored: {error}")
    return result


def from_store(store: StoreLike, request: DerivedRequest) -> DerivedResult | None:
    """The stored answer, or None. Needs no loaded model."""
    identity = recall_identity(store, request.model)
    return None if identity is None else _read(store, _key(request, identity), request)


def provenance_of(model: MoeModel, request: DerivedRequest) -> dict[str, Any]:
    """What stands beside the numbers: model, versions, implementations, noise floor, what has to be said of them."""
    from .provenance import about, partly_corrupted

    placement = "memory" if model.weights is None else "disk"
    notes = partly_corrupted(model) if request.adds_noise else []
    return {**about(model), "quantisation": model.quantisation, "placement": placement, "notes": notes}


def pack(result: DerivedResult) -> bytes:
    """An answer as one file: a ZIP with each table as Parquet and the rest as JSON."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        rest = {"request": result.request.to_dict(), "values": result.values, "provenance": result.provenance}
        archive.writestr("answer.json", json.dumps(rest | {"tables": list(result.tables)}))
        for number, table in enumerate(result.tables.values()):
            archive.writestr(zipfile.ZipInfo(f"{number}.parquet"), table_bytes(table, ".parquet"))
    return out.getvalue()


def unpack(payload: bytes, request: DerivedRequest | None = None) -> DerivedResult:
    """The inverse of `pack`. `request`: the one that it answers, where it is known (many facts take time to read)."""
    import pandas as pd

    with zipfile.ZipFile(io.BytesIO(payload)) as archive:
        rest = json.loads(archive.read("answer.json"))
        tables = {
            name: pd.read_parquet(io.BytesIO(archive.read(f"{number}.parquet")))
            for number, name in enumerate(rest["tables"])
        }
    if request is None:
        request = DerivedRequest.from_dict(rest["request"])
    return DerivedResult(request, tables, rest["values"], rest["provenance"], cached=True)


def _key(request: DerivedRequest, identity: str) -> str:
    return digest(request.about, identity)


def _read(store: StoreLike, key: str, request: DerivedRequest) -> DerivedResult | None:
    payload = store.get_derived(key)
    return None if payload is None else unpack(payload, request)
