"""The facts that a command names, and which of them can be used; the others are named on stderr.

Knows the parsed arguments and the readers of facts, no model and no engine.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .cli_lists import facts_of
from .console import TerminalProgress, say
from .errors import InputError
from .fact_sets import BUNDLED
from .facts import MAX_CASE_ID
from .prompts import PreparedFact, check_objects, subject_span
from .requests import AUTO_FOIL, Fact, TraceRequest

_LEFT_OUT_SHOWN = 10


class Sieve:
    """The facts of a command. What cannot be used is left out and said, unless it is the only one: then its error is
    the command's error."""

    def __init__(self, arguments: argparse.Namespace, progress: TerminalProgress) -> None:
        """Reads the facts, and checks what needs no tokenizer. Raises `InputError` if none is left."""
        self._facts = named_facts(arguments)
        # whose subjects may stand in for a fact's own; None: the bundled ones
        self._pool = _read(arguments, auto=True) if self.chooses_from_file(arguments) else None
        self._progress = progress
        self.usable = self.keep(self._facts, lambda fact: (subject_span(fact), check_objects(fact)))

    @staticmethod
    def chooses_from_file(arguments: argparse.Namespace) -> bool:
        """Whether the command chooses other subjects from a file: then its requests are known after tokenising."""
        auto = [name.strip().casefold() for name in arguments.replacement or ["auto"]] == ["auto"]
        return arguments.corruption == "replace" and auto and arguments.facts is not None

    def keep(self, candidates: list[Fact], check: Callable[[Fact], Any]) -> list[Fact]:
        """The facts that pass `check`."""
        good, left_out = [], []
        for fact in candidates:
            try:
                check(fact)
                good.append(fact)
            except InputError as error:
                if len(self._facts) == 1:
                    raise
                left_out.append((fact, error))
        if left_out:
            self._progress.close()
            _report_left_out(left_out, len(self._facts))
        if not good:
            raise InputError("None of the facts can be traced.", "", field="facts")
        return good

    def tokenised(
        self, model: Any, options: TraceRequest, also: Callable[[PreparedFact], Any] = lambda prepared: None
    ) -> list[TraceRequest]:
        """Requests for the facts that the model's tokenizer can represent and that pass `also`.

        Subjects that stand in for a fact's own are chosen from the command's file where it has one, and named then.
        """
        from .asking import prepare_for

        chosen: dict[int, tuple[str, ...]] = {}

        def check(fact: Fact) -> None:
            prepared = prepare_for(model, options.replace(fact=fact), pool=self._pool)
            also(prepared)
            chosen[id(fact)] = prepared.replacements if self._pool is not None else options.replacement

        self._progress.update(0, 1, "tokenising")
        return [options.replace(fact=fact, replacement=chosen[id(fact)]) for fact in self.keep(self.usable, check)]


def named_facts(arguments: argparse.Namespace) -> list[Fact]:
    """The facts that the arguments name."""
    typed = {name: getattr(arguments, name) for name in ("prompt", "subject", "true")}
    given = [f"--{name}" for name, value in typed.items() if value is not None]
    from_list = "--facts" if arguments.facts is not None else "--fact" if arguments.fact is not None else None
    if from_list and given:
        raise InputError(f"{from_list} and {given[0]} cannot go together.", "Give one or the other.", field="fact")
    if from_list and arguments.case_id is not None:
        raise InputError(
            f"{from_list} and --case-id cannot go together.",
            "Facts of a list have their own case_id; choose one of them with --fact N.",
            field="case_id",
        )
    auto = arguments.foil is not None and arguments.foil.strip().casefold() == AUTO_FOIL
    if from_list:
        return _listed(arguments, auto)
    missing = [f"--{name}" for name, value in typed.items() if value is None]
    if missing:
        raise InputError(
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing."
            if given
            else "There is no fact to trace.",
            "Give --prompt, --subject, --true and --foil, or --fact N, or --facts FILE.",
            field=missing[0].removeprefix("--"),
        )
    if arguments.foil is None:
        raise InputError(
            "--foil is missing.",
            "Give a false object, or --foil auto: the model's most probable other token.",
            field="foil",
        )
    case_id = 0 if arguments.case_id is None else arguments.case_id
    if not 0 <= case_id <= MAX_CASE_ID:
        raise InputError(f"--case-id is {case_id}.", f"Give a whole number from 0 to {MAX_CASE_ID}.", field="case_id")
    fact = Fact(
        prompt=arguments.prompt,
        subject=arguments.subject,
        true=arguments.true.strip(),
        foil=None if auto else arguments.foil.strip(),
        case_id=case_id,
        occurrence=arguments.occurrence,
        foil_auto=auto,
    )
    return [fact]


def _listed(arguments: argparse.Namespace, auto: bool) -> list[Fact]:
    """Facts of a file, or of the bundled list, all or those that --fact names."""
    from . import facts as lists

    found = facts_of(BUNDLED) if arguments.facts is None else _read(arguments, auto=auto)
    if arguments.fact is not None:
        found = [lists.find(found, case_id) for case_id in dict.fromkeys(arguments.fact)]
    if auto:
        return [replace(f, foil=None, foil_auto=True, occurrence=arguments.occurrence or f.occurrence) for f in found]
    if (arguments.foil is not None or arguments.occurrence is not None) and len(found) > 1:
        name = "--foil" if arguments.foil is not None else "--occurrence"
        raise InputError(
            f"{name} holds for one fact, but there are {len(found)}.",
            "Choose one with --fact N, or give --foil auto." if name == "--foil" else "Choose one with --fact N.",
            field=name.removeprefix("--"),
        )
    if arguments.foil is not None:
        found = [replace(f, foil=arguments.foil.strip()) for f in found]
    if arguments.occurrence is not None:
        found = [replace(f, occurrence=arguments.occurrence) for f in found]
    return found


def _read(arguments: argparse.Namespace, *, auto: bool) -> list[Fact]:
    return facts_of(arguments.facts, foil=AUTO_FOIL if auto else "file")


def _report_left_out(left_out: list[tuple[Fact, InputError]], total: int) -> None:
    say(f"{len(left_out)} of {total} facts cannot be traced and are left out:")
    for fact, error in left_out[:_LEFT_OUT_SHOWN]:
        say(f"  case_id {fact.case_id}: {error}")
    if len(left_out) > _LEFT_OUT_SHOWN:
        say(f"  … and {len(left_out) - _LEFT_OUT_SHOWN} more")
