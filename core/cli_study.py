"""The command `study`: run one, go on with it, list, show, cancel, rename, delete, export and import.

Arguments → `StudySettings` → `core.study` → what is said and written. Whatever loads torch is imported when a model is
really needed: looking at a study loads none.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
from pathlib import Path
from typing import Any

from .cli_options import load, model_of, model_options
from .console import TerminalProgress, duration, say, visible
from .errors import Cancelled, ExpertScopeError, InputError
from .requests import OBJECT_TOKENS, SPECIAL_TOKENS, ModelSpec
from .study.cases import CASE_SETS
from .study.cases import SCAN as SCAN_CASES
from .study.settings import BUNDLED, PRESETS, StudySettings, preset

EPILOG = """\
  python -m core study --model demo --facts bundled --name first
  python -m core study --model Qwen/Qwen3-30B-A3B-Base --facts counterfact.json --preset paper --name qwen3
  python -m core study show first --out results
A study that was cancelled, interrupted or killed goes on where it was: study resume NAME.
"""
_HELP = {
    "n": "facts to keep ({n})",
    "scan_seed": "seed of the order in which facts are scanned ({scan_seed})",
    "min_clean_contrast": "filter: least clean contrast, in logits ({min_clean_contrast})",
    "min_drop": "filter: least drop, in logits ({min_drop})",
    "noise": "noise level, × embedding std ({noise})",
    "draws": "noise draws per fact ({draws})",
    "seed": "seed of the noise, plus the case_id ({seed})",
    "fresh_seed": "seed of the fresh draw (seed + 1,000,000, or past the largest case_id)",
    "special_tokens": "({special_tokens})",
    "object_tokens": "({object_tokens})",
    "split_seed": "seed of the split into discovery and validation ({split_seed})",
    "by_subject": "all facts of a subject in one half, the bootstrap resamples subjects ({by_subject})",
    "recurrence": "share of the discovery facts in which a candidate is clean-active ({recurrence})",
    "controls": "active-random controls per fact ({controls})",
    "coalition_share": "share of the layer patch that the minimal coalition reaches ({coalition_share})",
    "random_coalitions": "random coalitions per fact ({random_coalitions})",
    "noise_levels": "levels of the noise sensitivity ({noise_levels})",
    "grid_seeds": "split seeds of the stability grid ({grid_seeds})",
    "grid_recurrence": "recurrences of the stability grid ({grid_recurrence})",
    "folds": "of the relation-held-out selection ({folds})",
    "fresh_draw": "repeat the estimates on a fresh noise draw ({fresh_draw})",
    "joint_search": "patch the experts of every layer, not only of the selected one ({joint_search})",
    "resamples": "bootstrap resamples ({resamples})",
    "flips": "samples of the sign-flip test ({flips})",
    "confidence": "level of the intervals ({confidence})",
    "stats_seed": "seed of the bootstrap and of the sign-flip test ({stats_seed})",
}
_GROUPS = {
    "facts": ("n", "scan_seed", "min_clean_contrast", "min_drop", "special_tokens", "object_tokens"),
    "corruption": ("noise", "draws", "seed", "noise_levels", "fresh_draw", "fresh_seed"),
    "selection": (
        "split_seed", "by_subject", "recurrence", "controls", "coalition_share", "random_coalitions", "joint_search",
        "grid_seeds", "grid_recurrence", "folds",
    ),
    "statistics": ("resamples", "flips", "confidence", "stats_seed"),
}  # fmt: skip
_CHOICES = {"special_tokens": SPECIAL_TOKENS, "object_tokens": OBJECT_TOKENS}


def add_study(commands: Any) -> None:
    """The parser of the `study` command."""
    study = commands.add_parser(
        "study",
        help="the paper's protocol over many facts",
        description="Scan facts, select a layer and an expert on one half, estimate on the other, with controls. "
        "Values in brackets are the paper's; a preset changes some, an option wins over the preset.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    study.set_defaults(run=run_study)
    model = study.add_argument_group("model and list of facts")
    model_options(model)
    model.add_argument(
        "--facts", default=BUNDLED, metavar="FILE", help="CounterFact .json, .jsonl, .csv, .parquet, or bundled"
    )
    model.add_argument(
        "--cases", default=SCAN_CASES, choices=(SCAN_CASES, *CASE_SETS),
        help="scan the list, or the paper's own case ids with their split, where the list is CounterFact (scan)",
    )  # fmt: skip
    study.add_argument("--name", metavar="NAME", help="what the study is called from now on")
    study.add_argument(
        "--preset", choices=tuple(PRESETS), help="settings to begin with (demo for the bundled facts, else paper)"
    )
    study.add_argument(
        "--batch-tokens", type=int, metavar="N", help="packed tokens per batch (a batch is committed whole)"
    )
    _setting_options(study)

    actions = study.add_subparsers(metavar="ACTION", title="actions on studies that are there")
    _action(actions, "list", run_list, "all studies", name=False)
    show = _action(actions, "show", run_show, "what a study found")
    show.add_argument("--out", metavar="DIR", help="write all tables, figures and the report into this folder")
    _action(actions, "resume", run_resume, "go on with a study that is not finished")
    _action(actions, "cancel", run_cancel, "stop a running study; what is done is kept")
    _action(actions, "rename", run_rename, "give a study another name").add_argument("new", metavar="NEW")
    _action(actions, "delete", run_delete, "remove a study from the store")
    _action(actions, "export", run_export, "write a study to one file").add_argument("file", metavar="FILE")
    fetch = _action(actions, "import", run_import, "read a study that was exported", name=False)
    fetch.add_argument("file", metavar="FILE")
    fetch.add_argument("--name", dest="chosen", metavar="NAME", help="what to call it here (the name that it has)")


def _action(actions: Any, word: str, run: Any, help_text: str, *, name: bool = True) -> argparse.ArgumentParser:
    parser = actions.add_parser(word, help=help_text, description=f"{help_text}.", allow_abbrev=False)
    if name:
        parser.add_argument("study", metavar="NAME")
    parser.set_defaults(run=run)
    return parser


def _setting_options(study: argparse.ArgumentParser) -> None:
    """An option for every setting; what is not given is left to the preset."""
    default = StudySettings()
    shown = {f.name: _shown(getattr(default, f.name)) for f in dataclasses.fields(default)}
    for title, names in _GROUPS.items():
        group = study.add_argument_group(title)
        for name in names:
            value, options = getattr(default, name), {"default": None, "help": _HELP[name].format(**shown)}
            flag = f"--{name.replace('_', '-')}"
            if isinstance(value, bool):
                group.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
            elif isinstance(value, tuple):
                group.add_argument(flag, nargs="+", type=type(value[0]), metavar="X", **options)
            elif name in _CHOICES:
                group.add_argument(flag, choices=_CHOICES[name], **options)
            else:
                group.add_argument(flag, type=float if isinstance(value, float) else int, metavar="X", **options)


def settings_of(arguments: argparse.Namespace) -> StudySettings:
    """The settings that the arguments of a new study name. Raises `InputError` naming the one that is wrong."""
    chosen = arguments.preset or ("demo" if arguments.facts == BUNDLED else "paper")
    names = [name for group in _GROUPS.values() for name in group]
    changes = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    facts = arguments.facts if arguments.facts == BUNDLED else Path(arguments.facts).name
    return preset(chosen, **changes, model=model_of(arguments), facts=facts, cases=arguments.cases)


def run_study(arguments: argparse.Namespace) -> int:
    """A new study, from the first fact to the verdict."""
    from . import facts as lists

    settings = settings_of(arguments)
    if arguments.name is None:
        raise InputError("The study has no name.", "Give it one: --name NAME.", field="name")
    if arguments.batch_tokens is not None and arguments.batch_tokens < 1:
        raise InputError(f"--batch-tokens is {arguments.batch_tokens}.", "Give at least 1.", field="batch_tokens")
    from cache.studies import checked_name

    book, name = _book(), checked_name(arguments.name)
    if book.find(name) is not None:
        raise InputError(
            f"There is a study {name!r} already.",
            "Go on with it (study resume NAME), delete it (study delete NAME), or choose another --name.",
            field="name",
        )
    facts = lists.bundled() if settings.facts == BUNDLED else lists.read(arguments.facts)
    from .study.data import create

    create(book, name, settings, facts, batch_tokens=arguments.batch_tokens)
    return _go(book, settings, name, fresh=True)


def run_resume(arguments: argparse.Namespace) -> int:
    """Go on with a study."""
    from .study.data import DONE, QUEUED, RUNNING, running_already, state_of

    book = _book()
    record = book.get(arguments.study)
    if record.state == DONE:
        _print(book, record.name)
        return 0
    if state_of(book, record) in (QUEUED, RUNNING):
        raise running_already(record.name)
    return _go(book, StudySettings.from_dict(record.settings), record.name)


def _go(book: Any, settings: StudySettings, name: str, *, fresh: bool = False) -> int:
    """Load the model and do what is left of a study. A `fresh` one whose model cannot be had is not kept."""
    hint = f"What is done is kept: python -m core study resume {name}"
    progress = TerminalProgress()
    try:
        try:
            model = _model(settings.model, progress)
        except ExpertScopeError:
            if fresh:
                book.delete(name)
            raise
        from .study.run import run

        run(book, model, name, progress=progress)
    except Cancelled:
        progress.close()
        raise Cancelled("The study was cancelled.", hint) from None
    except KeyboardInterrupt:
        progress.close()
        say(f"Interrupted. {hint}")
        return 130
    finally:
        progress.close()
    _print(book, name)
    return 0


def run_show(arguments: argparse.Namespace) -> int:
    """What a study found, on the terminal and as files."""
    book = _book()
    study = _loaded(book, arguments.study)
    _print(book, arguments.study)
    if arguments.out is not None:
        from .study.report import write

        folder = _folder(arguments.out)
        print(f"{len(write(study, folder))} files written to {folder}")
    return 0


def run_list(arguments: argparse.Namespace) -> int:
    """All studies."""
    from .study.data import state_of

    book = _book()
    table = [["name", "model", "preset", "state", "facts", "done", "begun"]]
    for record in book.all():
        funnel = record.progress.get("funnel", {})
        table.append([
            record.name, str(record.provenance.get("model", record.model)), str(record.settings.get("preset", "")),
            state_of(book, record), f"{funnel.get('kept', 0)} of {record.settings.get('n', '?')}",
            f"{record.progress.get('fraction', 0.0):.0%}",
            datetime.datetime.fromtimestamp(record.created / 1e6).strftime("%Y-%m-%d %H:%M"),
        ])  # fmt: skip
    if len(table) == 1:
        print("No studies yet. Begin one: python -m core study --model demo --facts bundled --name first")
        return 0
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    for row in table:
        print(visible("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()))
    return 0


def run_cancel(arguments: argparse.Namespace) -> int:
    """Ask a running study to stop."""
    from .study.data import CANCELLED, INTERRUPTED, QUEUED, RUNNING, state_of

    book = _book()
    record = book.get(arguments.study)
    state = state_of(book, record)
    if state == INTERRUPTED:
        book.update(record.name, state=CANCELLED)
        print(f"The study {record.name} was not running; what is done is kept.")
    elif state in (RUNNING, QUEUED):
        book.update(record.name, stop=True)
        print(f"The study {record.name} stops within seconds; what is done is kept.")
    else:
        raise InputError(f"The study {record.name!r} is not running: it is {state}.", "", field="name")
    return 0


def run_rename(arguments: argparse.Namespace) -> int:
    """Another name for a study."""
    _book().rename(arguments.study, arguments.new)
    return 0


def run_delete(arguments: argparse.Namespace) -> int:
    """Remove a study that is not running."""
    from .study.data import QUEUED, RUNNING, running_already, state_of

    book = _book()
    if state_of(book, book.get(arguments.study)) in (RUNNING, QUEUED):
        raise running_already(arguments.study)
    book.delete(arguments.study)
    return 0


def run_export(arguments: argparse.Namespace) -> int:
    """A study as one file."""
    from .study.archive import SUFFIX, pack
    from .tables import check_place, write_file

    path = check_place(arguments.file, (SUFFIX,), option="FILE")
    content = pack(_book(), arguments.study)
    write_file(content, path)
    print(f"{len(content) / 1e6:.1f} MB written to {path}")
    return 0


def run_import(arguments: argparse.Namespace) -> int:
    """A study out of one file."""
    from .study.archive import unpack

    book = _book()
    name = unpack(book, Path(arguments.file).expanduser(), name=arguments.chosen)
    print(f"Imported as {name}: python -m core study show {name}")
    return 0


def _book() -> Any:
    from cache.studies import Studies

    return Studies()


def _model(spec: ModelSpec, progress: TerminalProgress) -> Any:
    """The loaded model. Others can use the store meanwhile."""
    from cache.verdicts import Verdicts

    return load(spec, Verdicts(), progress)


def _loaded(book: Any, name: str) -> Any:
    from .study.data import load as load_study

    return load_study(book, name)


def _folder(path: str) -> Path:
    """The folder for results, made if need be. Raises `InputError` where it cannot be written."""
    folder = Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--out {path} is no folder that can be made: {error.strerror}.", "Choose another.", field="out"
        ) from None
    return folder


def _print(book: Any, name: str) -> None:
    """How a study stands and what it found."""
    from .study.data import state_of
    from .study.text import overview

    record, study = book.get(name), _loaded(book, name)
    seconds = record.progress.get("seconds")
    spent = f" in {duration(seconds)}" if seconds else ""
    print(visible(f"{study.name}: {state_of(book, record)}, {record.progress.get('fraction', 0.0):.0%} done{spent}"))
    if record.note:
        print(visible(record.note))
    print("\n".join(visible(line) for line in overview(study).split("\n")))


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(f"{v:g}" for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
