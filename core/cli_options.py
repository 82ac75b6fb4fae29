"""What the commands that ask a model have in common: their options, the request they make, the store, the model."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

from .cli_lists import FACTS_HELP
from .console import TerminalProgress, say
from .errors import InputError, StoreError
from .progress import Progress
from .requests import (
    AUTO_FOIL,
    CORRUPTIONS,
    DEVICES,
    DTYPES,
    MAX_DRAWS,
    OBJECT_TOKENS,
    PLACEMENTS,
    SPECIAL_TOKENS,
    Fact,
    ModelSpec,
    TraceRequest,
)

if TYPE_CHECKING:
    from .derived import DerivedRequest, DerivedResult


def model_options(model: Any) -> None:
    """The options that say which model, into an argument group."""
    model.add_argument("--model", default="demo", metavar="NAME", help="demo, a Hugging Face id or a folder (demo)")
    model.add_argument("--revision", metavar="REV", help="branch, tag or commit of a Hugging Face id")
    model.add_argument("--dtype", default="auto", choices=DTYPES, help="auto: float32 on a CPU where it fits")
    model.add_argument("--device", default="auto", choices=DEVICES)
    model.add_argument("--quantisation", default="none", metavar="WHAT", help="none, or int8: smaller weights (none)")
    model.add_argument(
        "--placement", default="auto", choices=PLACEMENTS,
        help="weights in memory, or layers read from the disk once per trace; auto: in memory if they fit",
    )  # fmt: skip


def model_of(arguments: argparse.Namespace) -> ModelSpec:
    """The model that the arguments name."""
    return ModelSpec(
        arguments.model, arguments.revision, arguments.dtype, arguments.device, arguments.quantisation,
        arguments.placement,
    )  # fmt: skip


def fact_options(command: argparse.ArgumentParser) -> None:
    """The options that say which model, which facts and which corruption."""
    model_options(command.add_argument_group("model"))

    fact = command.add_argument_group("facts")
    fact.add_argument("--prompt", metavar="TEXT", help="template with {} for the subject, or the whole text")
    fact.add_argument("--subject", metavar="TEXT")
    fact.add_argument("--true", metavar="TEXT", help="the true object")
    fact.add_argument("--foil", metavar="TEXT", help="a false object; auto: the most probable other token")
    fact.add_argument("--occurrence", type=int, metavar="K", help="which occurrence of the subject is meant (from 1)")
    fact.add_argument("--case-id", type=int, metavar="N", help="number of a typed fact; seeds its noise (0)")
    fact.add_argument("--fact", type=int, nargs="+", metavar="N", help="facts by case_id, bundled or of --facts")
    fact.add_argument("--facts", metavar="FILE", help=FACTS_HELP)

    method_options(command)


def method_options(command: argparse.ArgumentParser) -> None:
    """The options that say which corruption and which tokens."""
    method = command.add_argument_group("method")
    method.add_argument("--noise", type=float, default=3.0, metavar="X", help="noise level, × embedding std (3)")
    method.add_argument(
        "--draws", type=int, default=1, metavar="N", help=f"noise draws, or other subjects; 1 to {MAX_DRAWS} (1)"
    )
    method.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the noise, or of the choice; plus the case_id (0)"
    )
    method.add_argument(
        "--corruption", default="noise", choices=CORRUPTIONS, help="replace: another subject in the subject's place"
    )
    method.add_argument(
        "--replacement", nargs="+", metavar="TEXT",
        help="that subject (several: one draw each); auto: chosen from the facts of --facts, or else the bundled ones",
    )  # fmt: skip
    method.add_argument("--special-tokens", default="auto", choices=SPECIAL_TOKENS)
    method.add_argument("--object-tokens", default="space", choices=OBJECT_TOKENS)
    method.add_argument("--first-token", action="store_true", help="let an object's first token stand for it")


def template(arguments: argparse.Namespace, *, experts: str | tuple[int, ...]) -> TraceRequest:
    """The request of every fact of a command, but for the fact."""
    return TraceRequest(
        fact=Fact("", "", ""),
        model=model_of(arguments),
        noise=arguments.noise,
        draws=arguments.draws,
        seed=arguments.seed,
        special_tokens=arguments.special_tokens,
        object_tokens=arguments.object_tokens,
        first_token=arguments.first_token,
        experts=experts,
        corruption=arguments.corruption,
        replacement=_replacement(arguments),
    )


def _replacement(arguments: argparse.Namespace) -> tuple[str, ...]:
    given = tuple(arguments.replacement or ())
    if given and arguments.corruption != "replace":
        raise InputError(
            "--replacement goes with --corruption replace.", "Give both, or neither for noise.", field="replacement"
        )
    return () if [name.strip().casefold() for name in given] == [AUTO_FOIL] else given




def load(spec: ModelSpec, store: Any, progress: Progress) -> Any:
    """The loaded model; where its weights stay on the disk, that is said."""
    from .models import load_model

    model = load_model(**dataclasses.asdict(spec), progress=progress, store=store)
    if remark := getattr(model, "remark", ""):
        say(remark)
    return model


def answered(request: DerivedRequest, *, no_cache: bool) -> DerivedResult:
    """The answer to what is more than a trace: from the store, or computed with progress on the terminal."""
    from .derived import derive, from_store

    progress = TerminalProgress()
    try:
        with open_store(no_cache) as store:
            result = None if store is None else from_store(store, request)
            if result is None:
                result = derive(load(request.model, store, progress), request, store=store, progress=progress)
    finally:
        progress.close()
    return result


@contextlib.contextmanager
def open_store(no_cache: bool) -> Any:
    """The open store, or None where it is not wanted or cannot be had (which is said, and stops nothing)."""
    if no_cache:
        yield None
        return
    from cache.store import Store

    try:
        store = Store.open()
    except StoreError as error:
        say(f"Going on without the store: {error}")
        yield None
        return
    try:
        yield store
    finally:
        store.close()
