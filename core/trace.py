"""Tracing: requests in, results out, through the store where there is one.

`trace_many` prepares the facts, asks the store what is already there (activations of runs, row sets), runs what is
missing in as few sweeps as memory allows, stores it and assembles the answers. `from_store` answers without a model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from .answers import assemble, parts_of
from .asking import check_tokens, prepare_for
from .errors import InputError, StoreError
from .identity import imported_key, manifest_key, recall_identity
from .progress import SILENT, Progress
from .prompts import PreparedFact
from .requests import Fact, TraceRequest
from .results import TraceResult

if TYPE_CHECKING:  # these load torch, which an answer from the store does without
    from .missing import Question
    from .moe import MoeModel


class StoreLike(Protocol):
    """What tracing needs of `cache.store.Store`."""

    def get_manifest(self, key: str) -> dict[str, Any] | None: ...
    def get_many_run_info(self, keys: Sequence[str]) -> dict[str, Any]: ...
    def get_many_rows(self, pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Any]: ...


def trace(
    model: MoeModel,
    fact: Fact | TraceRequest | None = None,
    *,
    prompt: str | None = None,
    subject: str | None = None,
    true: str | None = None,
    foil: str | None = None,
    case_id: int = 0,
    occurrence: int | None = None,
    store: Any = None,
    progress: Progress = SILENT,
    **settings: Any,
) -> TraceResult:
    """Trace one fact: give a `Fact` (or a whole `TraceRequest`), or `prompt`, `subject`, `true` and `foil`.

    `foil="auto"` takes the model's most probable other token; `occurrence` (from 1) says which occurrence of the
    subject is meant where the prompt is a whole text and has several. `settings` are the fields of `TraceRequest`:
    noise, draws, seed, special_tokens, object_tokens, first_token, experts, corruption, replacement. Raises
    `InputError` for wrong input.
    """
    if isinstance(fact, TraceRequest):
        return trace_many(model, [fact], store=store, progress=progress)[0]
    if fact is None:
        given = {"prompt": prompt, "subject": subject, "true": true}
        for name, value in given.items():
            if value is None:
                raise InputError(f"{name} is missing.", "Give a Fact, or prompt, subject, true and foil.", field=name)
        auto = foil == "auto"
        fact = Fact(
            prompt, subject, true, None if auto else foil,  # type: ignore[arg-type]
            case_id=case_id, occurrence=occurrence, foil_auto=auto,
        )  # fmt: skip
    request = TraceRequest(fact, model=model.spec, **settings)
    return trace_many(model, [request], store=store, progress=progress)[0]


def trace_many(
    model: MoeModel, requests: Sequence[TraceRequest], *, store: Any = None, progress: Progress = SILENT
) -> list[TraceResult]:
    """Answer many requests about one model in as few sweeps as possible; results in the order of the requests.

    Every request must be answerable: the first unusable fact raises `InputError` (see `core.asking.prepare_for` to
    find out beforehand).
    """
    from .missing import Question

    questions = []
    for request in requests:
        request = request.replace(model=model.spec)
        questions.append(Question(request, prepare_for(model, request)))
    return _answer(model, questions, store, progress)


def trace_prepared(
    model: MoeModel,
    facts: Sequence[PreparedFact],
    *,
    store: Any = None,
    progress: Progress = SILENT,
    **settings: Any,
) -> list[TraceResult]:
    """As `trace_many` for facts that are token ids already; `settings` as in `trace`."""
    from .missing import Question

    questions = [Question(TraceRequest(f.fact, model=model.spec, **settings), f) for f in facts]
    return _answer(model, questions, store, progress)


def from_store(store: Any, request: TraceRequest) -> TraceResult | None:
    """The stored answer to a request, or None. Needs no loaded model and imports no torch.

    One that was imported from elsewhere (see `core.trace_archive`) is given where there is none of this machine.
    """
    identity = recall_identity(store, request.model)
    keys = [] if identity is None else [manifest_key(request, identity)]
    for key in (*keys, imported_key(request)):
        manifest = store.get_manifest(key)
        found = None if manifest is None else recalled(store, request, manifest)
        if found is not None:
            return found
    return None


def recalled(store: StoreLike, request: TraceRequest, manifest: dict[str, Any]) -> TraceResult | None:
    """The answer that a manifest names, or None where a part of it is not there any more."""
    runs = [manifest["clean"], *manifest["corrupt"]]
    infos = store.get_many_run_info(runs)
    wanted = [(pair, part) for pair in manifest["pairs"] for part in manifest["parts"]]
    rows = store.get_many_rows(wanted)
    if any(key not in infos for key in runs) or any(key not in rows for key in wanted):
        return None  # something was evicted since
    return assemble(
        request,
        manifest["provenance"],
        draws=[[rows[pair, part] for part in manifest["parts"]] for pair in manifest["pairs"]],
        run_infos=[infos[key][0] for key in runs],
        routings=[infos[key][1] for key in runs],
        ranks=manifest["ranks"],
        cached=True,
    )


def _is_about(manifest: dict[str, Any], prepared: PreparedFact) -> bool:
    """Whether the stored answer is about these very token ids (facts given as ids need not follow from their text)."""
    stored = manifest["provenance"]
    return (
        stored["token_ids"] == list(prepared.input_ids)
        and stored["subject_positions"] == list(prepared.subject_positions)
        and stored["true_id"] == prepared.true_id
        and prepared.foil_id in (None, stored["foil_id"])
        and stored.get("replaced_ids", []) == [list(ids) for ids in prepared.replaced_ids]
    )


def _answer(model: MoeModel, questions: Sequence[Question], store: Any, progress: Progress) -> list[TraceResult]:
    from .missing import answer_missing
    from .provenance import provenance_of

    results: list[TraceResult | None] = [None] * len(questions)
    open_questions = []
    for i, question in enumerate(questions):
        check_tokens(model, question.request, question.prepared)
        if store is not None:
            manifest = store.get_manifest(manifest_key(question.request, model.identity))
            if manifest is not None and _is_about(manifest, question.prepared):
                results[i] = recalled(store, question.request, manifest)
        if results[i] is None:
            open_questions.append(i)
    read_before = model.bytes_read
    for i, answer in answer_missing(model, [(i, questions[i]) for i in open_questions], store, progress):
        question = questions[i]
        read = model.bytes_read - read_before
        provenance = dataclasses.asdict(provenance_of(model, answer.prepared, answer.sigma, bytes_read=read))
        parts = parts_of(question.request, len(question.prepared.input_ids))
        manifest = {
            "request": question.request.to_dict(), "provenance": provenance, "clean": answer.run_keys[0],
            "corrupt": answer.run_keys[1:], "pairs": answer.pair_keys, "parts": parts, "ranks": answer.ranks,
        }  # fmt: skip
        if store is not None:
            try:
                answer.write(store, model, manifest_key(question.request, model.identity), manifest)
            except StoreError as error:  # a full disk must not cost an answer that is there
                provenance["notes"] = [*provenance["notes"], f"This answer could not be stored: {error}"]
        results[i] = assemble(
            question.request,
            provenance,
            draws=[[tables[part] for part in parts] for tables in answer.tables],
            run_infos=answer.run_infos,
            routings=answer.routings,
            ranks=answer.ranks,
            cached=answer.cached,
        )
    return [result for result in results if result is not None]
