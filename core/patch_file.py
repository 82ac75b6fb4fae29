"""A list of interventions as JSON: read, checked, and turned into patches of one fact's runs.

    [{"name": "window", "run": "corrupt",
      "steps": [{"site": "moe", "layer": [2, 3], "pos": "last", "restore": "clean"}]}]

A step with `experts` adds the sum of their updates; with `equal_norm_with` too, scaled down to the norm of the sum of
those experts' updates where that is smaller. Every mistake names the patch and the step it is in. Knows the shape of a
model (layers, experts), not its weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from .errors import InputError
from .patches import CLEAN_TOP_K, ROUTING_UNION, SHARED, Masked, Own, Patch, Step, Updates, Value

SITES = ("moe", "attention", "layer", "residual")
RUNS = ("corrupt", "clean")
RESTORE = ("clean", "corrupt")
KNOCKOUTS = ("zero", "reroute")
PLACES = ("last", "last_subject", "all")
GROUPS = (SHARED, CLEAN_TOP_K, ROUTING_UNION)
"""What may stand in `experts` beside numbers."""
_PATCH_KEYS = {"name", "run", "steps"}
_STEP_KEYS = {"site", "layer", "pos", "restore", "experts", "equal_norm_with", "knockout"}


class Shape(Protocol):
    """What has to be known of a model to say whether a step names something that exists."""

    n_layers: int
    n_experts: int
    top_k: int
    moe_layers: list[int]
    has_shared: bool
    reroutable: bool
    has_attention: Sequence[bool]


@dataclass(frozen=True)
class StepSpec:
    """One step as it was written. `pos`: `last`, `last_subject`, `all`, or token indices."""

    where: str
    site: str
    layers: tuple[int, ...]
    pos: str | tuple[int, ...]
    restore: str | None
    experts: tuple[int | str, ...]
    equal_norm_with: tuple[int | str, ...]
    knockout: str | None


@dataclass(frozen=True)
class PatchSpec:
    """One named intervention in the clean or the corrupt run."""

    name: str
    run: str
    steps: tuple[StepSpec, ...]


def read_patches(path: str | Path) -> list[PatchSpec]:
    """Read a patches file. Raises `InputError` naming the patch, the step and the key that is wrong."""
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise InputError(f"--patches {path} cannot be read: {reason}.", "Check the path.", field="patches") from None
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"--patches {path} is not JSON: {error}.", "Mend the file.", field="patches") from None
    return parse_patches(data)


def parse_patches(data: Any) -> list[PatchSpec]:
    """Check JSON values and make specifications of them."""
    if not isinstance(data, list) or not data:
        raise _wrong("the file", "is not a list of patches", "Write [ {...}, ... ] with at least one.")
    specs = [_patch(item, i) for i, item in enumerate(data)]
    seen: set[str] = set()
    for spec in specs:
        if spec.name in seen:
            raise _wrong(f"patch {spec.name!r}", "is there twice", "Give every patch a name of its own.")
        seen.add(spec.name)
    return specs


def _wrong(where: str, what: str, next_step: str = "") -> InputError:
    return InputError(f"--patches: {where} {what}.", next_step, field="patches")


def _patch(item: Any, i: int) -> PatchSpec:
    if not isinstance(item, dict):
        raise _wrong(f"patch {i}", "is not an object", 'Write {"name": ..., "run": ..., "steps": [...]}.')
    name = item.get("name")
    if not isinstance(name, str) or not name.strip():
        raise _wrong(f"patch {i}", "has no name", 'Give it a "name".')
    where = f"patch {name!r}"
    if name in RUNS:
        raise _wrong(where, "has the name of a run, which has a row of its own", "Give it another name.")
    _known(where, item, _PATCH_KEYS)
    run = _choice(where, "run", item.get("run", "corrupt"), RUNS)
    steps = item.get("steps")
    if not isinstance(steps, list) or not steps:
        raise _wrong(where, "has no steps", 'Give it "steps": a list with at least one.')
    return PatchSpec(name, run, tuple(_step(step, f"{where}, step {j}", run) for j, step in enumerate(steps)))


def _step(item: Any, where: str, run: str) -> StepSpec:
    if not isinstance(item, dict):
        raise _wrong(where, "is not an object")
    _known(where, item, _STEP_KEYS)
    site = _choice(where, "site", item.get("site"), SITES)
    layers = _whole_numbers(where, "layer", item.get("layer"))
    pos = item.get("pos")
    pos = _choice(where, "pos", pos, PLACES) if isinstance(pos, str) else _whole_numbers(where, "pos", pos)
    restore, experts, knockout = item.get("restore"), item.get("experts"), item.get("knockout")
    other = item.get("equal_norm_with")
    if (restore is None) == (experts is None):
        raise _wrong(where, 'needs either "restore" or "experts"', "Give one of the two.")
    if restore is not None:
        for key, value in (("knockout", knockout), ("equal_norm_with", other)):
            if value is not None:
                raise _wrong(where, f'has "restore" and "{key}"', f'"{key}" goes with "experts".')
        return StepSpec(where, site, layers, pos, _choice(where, "restore", restore, RESTORE), (), (), None)
    if site != "moe":
        raise _wrong(where, f'has "experts" at site {site!r}', 'Experts are at site "moe".')
    members = _experts(where, "experts", experts)
    if knockout is not None:
        _choice(where, "knockout", knockout, KNOCKOUTS)
        if run != "clean":
            raise _wrong(where, "knocks out in the corrupt run", 'A knockout belongs to "run": "clean".')
        if CLEAN_TOP_K in members or ROUTING_UNION in members:
            raise _wrong(where, "knocks out a coalition by its name", "Name the experts by their numbers.")
        if other is not None:
            raise _wrong(where, 'has "knockout" and "equal_norm_with"', '"equal_norm_with" scales an added update.')
    others = () if other is None else _experts(where, "equal_norm_with", other)
    return StepSpec(where, site, layers, pos, None, members, others, knockout)


def _known(where: str, item: dict[str, Any], allowed: set[str]) -> None:
    extra = sorted(set(map(str, item)) - allowed)
    if extra:
        raise _wrong(where, f"has an unknown key {extra[0]!r}", f"Known are: {', '.join(sorted(allowed))}.")


def _choice(where: str, key: str, value: Any, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise _wrong(where, f"has {key} {value!r}", f"Choose one of: {', '.join(allowed)}.")
    return str(value)


def _whole_numbers(where: str, key: str, value: Any) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [value]
    good = all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in values)
    if not values or not good:
        raise _wrong(where, f"has {key} {value!r}", "Give a whole number from 0, or a list of them.")
    return tuple(sorted(set(values)))


def _experts(where: str, key: str, value: Any) -> tuple[int | str, ...]:
    values = value if isinstance(value, list) else [value]
    words = [v for v in values if isinstance(v, str)]
    numbers = [v for v in values if not isinstance(v, str)]
    if not values:
        raise _wrong(where, f"names no expert in {key}", f'Give "{key}": [0, 5] or with "shared".')
    for word in words:
        _choice(where, key, word, GROUPS)
    return (*(_whole_numbers(where, key, numbers) if numbers else ()), *(word for word in GROUPS if word in words))


# ---- for one fact of one model ---------------------------------------------------------------------------------------


def check_shape(specs: Sequence[PatchSpec], shape: Shape) -> None:
    """Raise `InputError` for the first step that names a layer or expert that the model does not have."""
    for step in (step for spec in specs for step in spec.steps):
        for layer in step.layers:
            if layer >= shape.n_layers:
                raise _wrong(step.where, f"names layer {layer}", f"The model has layers 0 to {shape.n_layers - 1}.")
            if step.site in ("moe", "layer") and layer not in shape.moe_layers:
                raise _wrong(step.where, f"names layer {layer}, which has no MoE block", "It is a dense layer.")
            if step.site in ("attention", "layer") and not shape.has_attention[layer]:
                raise _wrong(step.where, f"names layer {layer}, which has no attention sublayer")
        for expert in (*step.experts, *step.equal_norm_with):
            if expert == SHARED:
                if not shape.has_shared:
                    raise _wrong(step.where, "names the shared expert", "The model has none.")
                if step.knockout == "reroute":
                    raise _wrong(step.where, "reroutes the shared expert", "No router chooses it: use zero.")
            elif isinstance(expert, int) and expert >= shape.n_experts:
                raise _wrong(step.where, f"names expert {expert}", f"Experts go from 0 to {shape.n_experts - 1}.")
        if step.knockout == "reroute" and not shape.reroutable:
            raise _wrong(step.where, "reroutes", "This model's router cannot be driven so; use the zero knockout.")


def check_choice(spec: PatchSpec, patch: Patch, shape: Shape) -> None:
    """Raise `InputError` where a patch built from `spec` leaves a router fewer experts than it selects at some
    position: it would go on to select masked ones."""
    masked: dict[tuple[int, int], set[int]] = {}
    for step in patch.steps:
        for pos in step.positions if isinstance(step.source, Masked) else ():
            here = masked.setdefault((step.layer, pos), set())
            here.update(step.source.experts)  # type: ignore[union-attr]
            left = shape.n_experts - len(here)
            if left < shape.top_k:
                raise _wrong(
                    f"patch {spec.name!r}",
                    f"leaves the router of layer {step.layer} {left} of {shape.n_experts} experts at position {pos}, "
                    f"where it selects {shape.top_k}",
                    "Mask fewer, or use the zero knockout.",
                )


def build(spec: PatchSpec, *, n_tokens: int, last_subject: int, clean: int, corrupt: int) -> Patch:
    """The patch for one fact and draw; `clean`, `corrupt`: its runs in the sweep. Raises for a position beyond it."""
    steps: list[Step] = []
    for step in spec.steps:
        positions = _positions(step, n_tokens, last_subject)
        for layer in step.layers:
            steps += _steps(step, layer, positions, clean, corrupt)
    return Patch(clean if spec.run == "clean" else corrupt, tuple(sorted(steps, key=lambda step: step.layer)))


def _positions(step: StepSpec, n_tokens: int, last_subject: int) -> tuple[int, ...]:
    if isinstance(step.pos, str):
        return {"last": (n_tokens - 1,), "last_subject": (last_subject,), "all": tuple(range(n_tokens))}[step.pos]
    if step.pos[-1] >= n_tokens:
        raise _wrong(step.where, f"names position {step.pos[-1]}", f"The prompt has positions 0 to {n_tokens - 1}.")
    return step.pos


def _steps(step: StepSpec, layer: int, positions: tuple[int, ...], clean: int, corrupt: int) -> list[Step]:
    if step.restore is not None:
        source = Value(clean if step.restore == "clean" else corrupt)
        sites = ("attention", "moe") if step.site == "layer" else (step.site,)
        return [Step(site, layer, positions, "restore", source) for site in sites]  # type: ignore[arg-type]
    if step.knockout is None:
        return [Step("moe", layer, positions, "add", Updates(step.experts, clean, corrupt, step.equal_norm_with))]
    if step.knockout == "zero":
        return [Step("moe", layer, positions, "add", Own(step.experts))]
    masked = tuple(expert for expert in step.experts if isinstance(expert, int))
    return [Step("router", layer, positions, "mask", Masked(masked))]
