"""The question: which model, fact, noise and settings. Frozen values, no torch, no tokenizer.

A `TraceRequest` is the cache key (together with the identity of the model that answers it), the share link,
the command-line arguments and the first line of every export. It knows nothing of how it is answered.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from .errors import InputError
from .quantisation import NONE, check_asked

SpecialTokens = Literal["auto", "on", "off"]
ObjectTokens = Literal["space", "paper"]
Corruption = Literal["noise", "replace"]
SPECIAL_TOKENS = ("auto", "on", "off")
OBJECT_TOKENS = ("space", "paper")
DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda")
PLACEMENTS = ("auto", "memory", "disk")
CORRUPTIONS = ("noise", "replace")
"""Gaussian noise on the subject's embeddings, or another subject in its place."""
SCORES = ("contrast", "log_probability", "probability", "rank")
"""What a patch may be measured by: the contrast, or the true object's log-probability, probability or rank."""
AUTO_FOIL = "auto"
MAX_DRAWS = 1000
SEPARATOR = "|"
"""Between several replacements of a subject, where they stand in one text."""


@dataclass(frozen=True)
class Fact:
    """A prompt with a subject, a true object and a foil (protocol.md, "Quantities").

    `prompt` is a template with one `{}` for the subject, or the whole text with the subject in it; in the
    second case `occurrence` (1-based) says which one is meant if the subject stands there more than once.
    `foil` is None where the record has none; `foil_auto` asks for the model's most probable other token.
    """

    prompt: str
    subject: str
    true: str
    foil: str | None = None
    case_id: int = 0
    relation: str | None = None
    occurrence: int | None = None
    foil_auto: bool = False

    @property
    def text(self) -> str:
        """The prompt as the model gets it, before tokenisation."""
        return self.prompt.replace("{}", self.subject, 1)  # with several `{}` it is refused, and could grow huge


@dataclass(frozen=True)
class ModelSpec:
    """Which weights, in which number format, where. `name` is `demo`, a hub id or a local folder. `quantisation` is
    done while loading (see `core.quantisation`). `placement`: whether the decoder layers' weights are in memory, or
    stay on the disk and are read when they are needed; no number depends on it."""

    name: str = "demo"
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    quantisation: str = NONE
    placement: str = "auto"

    def __post_init__(self) -> None:
        _one_of("dtype", self.dtype, DTYPES)
        _one_of("device", self.device, DEVICES)
        check_asked(self.quantisation)
        _one_of("placement", self.placement, PLACEMENTS)
        if not isinstance(self.name, str) or not self.name.strip():
            raise InputError("No model was named.", "Give `demo`, a hub id or a folder.", field="model")


@dataclass(frozen=True)
class TraceRequest:
    """One question about one fact. Everything in it can change a number; nothing else can.

    `experts`: `last`, `all`, `none`, or a tuple of positions (token indices) at which every routed expert is
    patched. `first_token`: an object of several tokens is represented by its first one. `corruption`: `noise`, or
    `replace`, where each draw has another subject in the subject's place: those of `replacement`, or if that is empty
    subjects chosen from the bundled facts (see `core.replacing.choose`). The noise level does not count then, nor does
    the seed where subjects are named; with several of them `draws` is their number.
    """

    fact: Fact
    model: ModelSpec = field(default_factory=ModelSpec)
    noise: float = 3.0
    draws: int = 1
    seed: int = 0
    special_tokens: SpecialTokens = "auto"
    object_tokens: ObjectTokens = "space"
    first_token: bool = False
    experts: str | tuple[int, ...] = "last"
    corruption: Corruption = "noise"
    replacement: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _one_of("corruption", self.corruption, CORRUPTIONS)
        self._check_replacement()
        _one_of("special tokens", self.special_tokens, SPECIAL_TOKENS)
        _one_of("object tokens", self.object_tokens, OBJECT_TOKENS)
        if isinstance(self.experts, str):
            _one_of("experts", self.experts, ("last", "all", "none"))
        else:
            object.__setattr__(self, "experts", _positions(self.experts))
        noise = _number("noise", self.noise)
        if not (math.isfinite(noise) and 0 < noise <= 100):
            raise InputError(f"The noise level is {self.noise}.", "Give a number above 0, at most 100.", field="noise")
        object.__setattr__(self, "noise", noise)
        for name, low, high in (("draws", 1, MAX_DRAWS), ("seed", 0, 2**62)):
            object.__setattr__(self, name, _whole(name, getattr(self, name), low, high))

    def _check_replacement(self) -> None:
        given = (self.replacement,) if isinstance(self.replacement, str) else self.replacement
        if not isinstance(given, (tuple, list)) or not all(isinstance(name, str) for name in given):
            raise InputError(f"replacement is {given!r}.", "Give the names of other subjects.", field="replacement")
        given = tuple(name.strip() for name in given)
        object.__setattr__(self, "replacement", given)
        if not given:
            return
        wrong = ""
        if self.corruption != "replace":
            wrong = "A replacement of the subject is given, but the corruption is noise."
        elif not all(given):
            wrong = "A replacement of the subject is empty."
        elif any(SEPARATOR in name for name in given):
            wrong = f"A replacement of the subject has a {SEPARATOR!r} in it."
        elif len({name.casefold() for name in given}) < len(given):
            wrong = "A replacement of the subject is given twice."
        elif self.draws not in (1, len(given)):
            wrong = f"{self.draws} draws are asked for, but {len(given)} replacements of the subject given."
        if wrong:
            next_step = "With the corruption `replace`, give other subjects, one for each draw, or none."
            raise InputError(wrong, next_step, field="replacement")
        object.__setattr__(self, "draws", len(given))

    def replace(self, **changes: Any) -> TraceRequest:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` reads them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TraceRequest:
        """The inverse of `to_dict`."""
        data = dict(data)
        experts = data.get("experts", "last")
        data["experts"] = experts if isinstance(experts, str) else tuple(experts)
        data["replacement"] = tuple(data.get("replacement", ()))
        return cls(**{**data, "fact": Fact(**data["fact"]), "model": ModelSpec(**data["model"])})


def corrupt_runs(asked: TraceRequest) -> str:
    """How the corrupt runs of many facts come about, in words."""
    draws = f"{asked.draws} draw{'s' if asked.draws != 1 else ''} per fact, seed {asked.seed}"
    if asked.corruption == "noise":
        return f"noise level {asked.noise:g}, {draws}"
    if asked.replacement:
        return f"the subject replaced by {', '.join(asked.replacement[:3])}{' …' if asked.replacement[3:] else ''}"
    return f"another subject in the subject's place, {draws}"


def digest(*parts: Any) -> str:
    """A content key: sha256 over the canonical JSON of `parts`, 32 hex digits."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _one_of(field_name: str, value: str, allowed: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise InputError(f"{field_name} is {value!r}.", f"Choose one of: {', '.join(allowed)}.", field=field_name)


def _number(field_name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{field_name} is {_shown(value)}.", "Give a number.", field=field_name) from None


def _whole(field_name: str, value: Any, low: int, high: int) -> int:
    try:
        if not isinstance(value, (bool, str, bytes)) and int(value) == value and low <= value <= high:
            return int(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise InputError(
        f"{field_name} is {_shown(value)}.", f"Give a whole number from {low} to {high}.", field=field_name
    )


def _positions(value: Any) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(pos) for pos in value}))
    except (TypeError, ValueError, OverflowError):
        raise InputError(
            f"experts is {_shown(value)}.", "Choose last, all, none, or token positions.", field="experts"
        ) from None


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:  # Python writes no number of more than 4300 digits
        return "a number of too many digits"
