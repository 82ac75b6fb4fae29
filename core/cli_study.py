"""The command `study`: run one, go on with it, list, show, cancel, rename, delete, export and import.

Arguments → `StudySettings` → `core.study` → what is said and written. Whatever loads torch is imported when a model is
really needed: looking at a study loads none.
"""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path
from typing import Any

from .cli_lists import FACTS_HELP, LIST, facts_of
from .cli_options import load, model_of, model_options
from .console import TerminalProgress, duration, say, visible
from .errors import Cancelled, ExpertScopeError, InputError
from .progress import Progress
from .requests import ModelSpec
from .study.cases import CASE_SETS
from .study.cases import SCAN as SCAN_CASES
from .study.explain import CHOICES, GROUPS, HELP, shown
from .study.settings import BUNDLED, PRESETS, StudySettings, preset

EPILOG = """\
  python -m core study --model demo --facts bundled --name first
  python -m core study --model Qwen/Qwen3-30B-A3B-Base --facts counterfact.json --preset paper --name qwen3
  python -m core study show first --out results
A study that was cancelled, interrupted or killed goes on where it was: study resume NAME.
"""


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
        "--facts", default=BUNDLED, metavar="FILE", help=f"{FACTS_HELP}; or bundled (bundled)"
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
    _ray_options(study)
    _setting_options(study)

    actions = study.add_subparsers(metavar="ACTION", title="actions on studies that are there")
    _action(actions, "list", run_list, "all studies", name=False)
    show = _action(actions, "show", run_show, "what a study found")
    show.add_argument("--out", metavar="DIR", help="write all tables, figures and the report into this folder")
    _ray_options(_action(actions, "resume", run_resume, "go on with a study that is not finished"))
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


def _ray_options(parser: argparse.ArgumentParser) -> None:
    """Who measures."""
    group = parser.add_argument_group("workers (requirements-ray.txt)")
    group.add_argument(
        "--ray", metavar="ADDRESS", help="measure on a Ray cluster: its host:port, or local to start one here"
    )
    group.add_argument(
        "--ray-workers",
        type=int,
        metavar="N",
        help="each with the model in memory (as many as fit by cores and memory)",
    )


def _hiring(arguments: argparse.Namespace) -> Any:
    """Who measures, as `core.study.run.run` takes it. Raises `InputError` before a model is loaded."""
    if arguments.ray is None:
        if arguments.ray_workers is not None:
            raise InputError("--ray-workers says nothing without --ray.", "Add --ray local.", field="ray")
        from .study.tasks import here

        return here
    from .study.ray_workers import RayWorkers

    return RayWorkers(arguments.ray, arguments.ray_workers)


def _setting_options(study: argparse.ArgumentParser) -> None:
    """An option for every setting; what is not given is left to the preset."""
    default = StudySettings()
    for title, names in GROUPS.items():
        group = study.add_argument_group(title)
        for name in names:
            value = getattr(default, name)
            options = {"default": None, "help": HELP[name] + ("" if value is None else f" ({shown(value)})")}
            flag = f"--{name.replace('_', '-')}"
            if isinstance(value, bool):
                group.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
            elif isinstance(value, tuple):
                group.add_argument(flag, nargs="+", type=type(value[0]), metavar="X", **options)
            elif name in CHOICES:
                group.add_argument(flag, choices=CHOICES[name], **options)
            else:
                group.add_argument(flag, type=float if isinstance(value, float) else int, metavar="X", **options)


def settings_of(arguments: argparse.Namespace) -> StudySettings:
    """The settings that the arguments of a new study name. Raises `InputError` naming the one that is wrong."""
    chosen = arguments.preset or ("demo" if arguments.facts == BUNDLED else "paper")
    names = [name for group in GROUPS.values() for name in group]
    changes = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    named = arguments.facts == BUNDLED or arguments.facts.startswith(LIST)
    facts = arguments.facts if named else Path(arguments.facts).name
    return preset(chosen, **changes, model=model_of(arguments), facts=facts, cases=arguments.cases)


def run_study(arguments: argparse.Namespace) -> int:
    """A new study, from the first fact to the verdict."""
    settings = settings_of(arguments)
    if arguments.name is None:
        raise InputError("The study has no name.", "Give it one: --name NAME.", field="name")
    if arguments.batch_tokens is not None and arguments.batch_tokens < 1:
        raise InputError(f"--batch-tokens is {arguments.batch_tokens}.", "Give at least 1.", field="batch_tokens")
    from cache.studies import checked_name

    hire = _hiring(arguments)
    book, name = _book(), checked_name(arguments.name)
    if book.find(name) is not None:
        raise InputError(
            f"There is a study {name!r} already.",
            "Go on with it (study resume NAME), delete it (study delete NAME), or choose another --name.",
            field="name",
        )
    facts = facts_of(arguments.facts)
    from .study.data import create

    create(book, name, settings, facts, batch_tokens=arguments.batch_tokens)
    return _go(book, settings, name, hire=hire, fresh=True)


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
    return _go(book, StudySettings.from_dict(record.settings), record.name, hire=_hiring(arguments))


def _go(book: Any, settings: StudySettings, name: str, *, hire: Any, fresh: bool = False) -> int:
    """Load the model and do what is left of a study. A `fresh` one whose model cannot be had is not kept."""
    hint = f"What is done is kept: python -m core study resume {name}"
    progress = TerminalProgress()
    try:
        from .study.manage import preparing

        try:
            with preparing(book, name, "loading the model"):
                from .study.run import Stopping, run

                model = _model(settings.model, Stopping(progress, book, name))
        except Cancelled:
            raise
        except ExpertScopeError:
            if fresh:
                book.delete(name)
            raise
        run(book, model, name, progress=progress, hire=hire)
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
    from .study.manage import cancel

    stops = cancel(_book(), arguments.study)
    how = "stops within seconds" if stops else "was not running"
    print(f"The study {arguments.study} {how}; what is done is kept.")
    return 0


def run_rename(arguments: argparse.Namespace) -> int:
    """Another name for a study that is not running."""
    from .study.manage import rename

    rename(_book(), arguments.study, arguments.new)
    return 0


def run_delete(arguments: argparse.Namespace) -> int:
    """Remove a study that is not running."""
    from .study.manage import delete

    delete(_book(), arguments.study)
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


def _model(spec: ModelSpec, progress: Progress) -> Any:
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
    from .study.data import FAILED, state_of
    from .study.text import overview

    record, study = book.get(name), _loaded(book, name)
    seconds = record.progress.get("seconds")
    spent = f" in {duration(seconds)}" if seconds else ""
    print(visible(f"{study.name}: {state_of(book, record)}, {record.progress.get('fraction', 0.0):.0%} done{spent}"))
    if record.state == FAILED and record.note:
        print(visible(record.note))
    print("\n".join(visible(line) for line in overview(study).split("\n")))
