"""The settings of a study in words: what each one is, in which group it stands, and the command that begins the study.

For the command line and the Study page alike.
"""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

from ..requests import OBJECT_TOKENS, SPECIAL_TOKENS
from .settings import StudySettings, preset

HELP = {
    "n": "facts to keep",
    "scan_seed": "seed of the order in which facts are scanned",
    "min_clean_contrast": "filter: least clean contrast, in logits",
    "min_drop": "filter: least drop, in logits",
    "noise": "noise level, × embedding std",
    "draws": "noise draws per fact",
    "seed": "seed of the noise, plus the case_id",
    "fresh_seed": "seed of the fresh draw (seed + 1,000,000, or past the largest case_id)",
    "special_tokens": "whether the tokenizer adds its special tokens",
    "object_tokens": "the object's token: with a space before it, or by the paper's rule",
    "split_seed": "seed of the split into discovery and validation",
    "by_subject": "all facts of a subject in one half, the bootstrap resamples subjects",
    "recurrence": "share of the discovery facts in which a candidate is clean-active",
    "controls": "active-random controls per fact",
    "coalition_share": "share of the layer patch that the minimal coalition reaches",
    "random_coalitions": "random coalitions per fact",
    "noise_levels": "levels of the noise sensitivity",
    "grid_seeds": "split seeds of the stability grid",
    "grid_recurrence": "recurrences of the stability grid",
    "folds": "folds of the relation-held-out selection",
    "fresh_draw": "repeat the estimates on a fresh noise draw",
    "joint_search": "patch the experts of every layer, not only of the selected one",
    "resamples": "bootstrap resamples",
    "flips": "samples of the sign-flip test",
    "confidence": "level of the intervals",
    "stats_seed": "seed of the bootstrap and of the sign-flip test",
}
"""Setting → what it is, in a few words."""

GROUPS = {
    "facts": ("n", "scan_seed", "min_clean_contrast", "min_drop", "special_tokens", "object_tokens"),
    "corruption": ("noise", "draws", "seed", "noise_levels", "fresh_draw", "fresh_seed"),
    "selection": (
        "split_seed", "by_subject", "recurrence", "controls", "coalition_share", "random_coalitions", "joint_search",
        "grid_seeds", "grid_recurrence", "folds",
    ),
    "statistics": ("resamples", "flips", "confidence", "stats_seed"),
}  # fmt: skip

CHOICES = {"special_tokens": SPECIAL_TOKENS, "object_tokens": OBJECT_TOKENS}

PRESET_WORDS = {
    "paper": "The paper's settings: 256 facts with a clean contrast of at least 1 and a drop of at least 0.5, one "
    "noise draw each, candidates recur in half of the discovery facts.",
    "relaxed": "The paper's relaxed filters (0.5 and 0.25) with 512 facts.",
    "rome": "The paper's settings with ROME's ten noise draws per fact.",
    "demo": "For the bundled facts: candidates recur in a quarter of the discovery facts, all facts of a subject are "
    "in one half.",
}


def shown(value: Any) -> str:
    """A setting's value, as the command line takes it."""
    if value is None:
        return "automatic"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (tuple, list)):
        return " ".join(map(shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def command(settings: StudySettings, name: str) -> str:
    """The command that begins this study from its preset. A file of facts has to be given by its path."""
    base = preset(settings.preset)
    spec = settings.model
    words = ["python", "-m", "core", "study", "--model", spec.name]
    for option in dataclasses.fields(spec):
        value = getattr(spec, option.name)
        if option.name != "name" and value != option.default:
            words += [f"--{option.name}", value]
    words += ["--facts", settings.facts, "--preset", settings.preset]
    if settings.cases != base.cases:
        words += ["--cases", settings.cases]
    for setting in (name for group in GROUPS.values() for name in group):
        value = getattr(settings, setting)
        if value == getattr(base, setting) or (setting == "n" and settings.cases != base.cases):
            continue
        flag = f"--{setting.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            words += [flag, *([repr(v) for v in value] if isinstance(value, tuple) else [str(value)])]
    return shlex.join([*words, "--name", name])


def again(name: str) -> str:
    """What a study is called that repeats `name`, whose own name is taken."""
    return f"{name[:110]} again"


def python(settings: StudySettings, name: str) -> str:
    """A program that measures this study under `name` and says what came out. A file of facts has to be given by its
    path."""
    base, spec = preset(settings.preset), settings.model
    model = {option.name: getattr(spec, option.name) for option in dataclasses.fields(spec)}
    given = ", ".join(
        f"{option.name}={model[option.name]!r}"
        for option in dataclasses.fields(spec)
        if option.default != model[option.name]
    )
    changed = {
        option.name: getattr(settings, option.name)
        for option in dataclasses.fields(settings)
        if option.name not in ("preset", "model") and getattr(settings, option.name) != getattr(base, option.name)
    }
    more = "".join(f", {option}={value!r}" for option, value in changed.items())
    lines = [
        "from dataclasses import asdict",
        "",
        "import core",
        "from cache.studies import Studies",
        "from core import ModelSpec",
        "from core.cli_lists import facts_of",
        "from core.study.data import create, load",
        "from core.study.run import run",
        "from core.study.settings import preset",
        "from core.study.text import overview",
        "",
        f"settings = preset({settings.preset!r}, model=ModelSpec({given}){more})",
        "studies = Studies()",
        f"create(studies, {name!r}, settings, facts_of({settings.facts!r}))",
        f"run(studies, core.load_model(**asdict(settings.model)), {name!r})",
        f"print(overview(load(studies, {name!r})))",
    ]
    return "\n".join(lines) + "\n"
