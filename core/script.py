"""How to get the numbers of a page again without it: a command line and a short Python program.

Both say everything that can change a number; what is as by default is left out. Whatever a person typed is quoted for
the shell, and for Python by `repr`. Strings only; nothing is run.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from .averages import questions as averages
from .cli_lists import LIST
from .compare.link import Pair, to_query
from .compare.tables import SIDES, Compared
from .derived import DerivedRequest
from .fact_sets import BUNDLED, FactSet
from .links import Link, View
from .requests import Fact, ModelSpec, TraceRequest
from .results import TraceResult

Bundled = Callable[[int], Fact | None]
"""The bundled fact with a case_id, or None."""


_LONGEST = 100_000
"""Bytes: what Linux takes as one argument is 131,072."""


@dataclass(frozen=True)
class Script:
    """`command`: lines for a POSIX shell, started in the project's folder; `python`: a program."""

    command: str
    python: str


def of_result(result: Any, *, bundled: Bundled) -> Script:
    """The script of whatever kind of result it is."""
    if isinstance(result, Compared):
        links = {}
        for side in SIDES:
            request, (site, window) = result.side(side).request, result.site(side)
            known = bundled(request.fact.case_id) == request.fact
            links[side] = Link(request, View(site=site, window=window), known)
        return of_comparison(Pair(**links, same_model=result.same_model))
    if isinstance(result, TraceResult):
        return of_trace(result.request, bundled=bundled, chosen=result.provenance.replacements)
    return of_derived(result.request, bundled=bundled)


def of_trace(request: TraceRequest, *, bundled: Bundled, chosen: Sequence[str] = ()) -> Script:
    """The script of one trace. `chosen`: the subjects that stood in for the fact's own, where they were chosen."""
    return Script(_command(_trace_arguments(request, bundled, chosen)), _trace_python(request))


def of_traces(
    requests: Sequence[TraceRequest], *, bundled: Bundled, chosen: Sequence[Sequence[str]] | None = None
) -> Script:
    """The script of several traces: a command each, one program. Each model is loaded once. `chosen`: of each, as in
    `of_trace`."""
    lines = [
        _IMPORTS,
        "",
        "requests = [",
        *(f"    {_code(request)}," for request in requests),
        "]",
        "results = {}",
        "for spec in dict.fromkeys(request.model for request in requests):",
        "    model = core.load_model(**asdict(spec))",
        "    for request in (one for one in requests if one.model == spec):",
        "        results[request] = core.trace(model, request)",
        "        print(request.fact.text, results[request].frame, sep='\\n')",
        "    del model",
    ]
    names = [()] * len(requests) if chosen is None else chosen
    asked = zip(requests, names, strict=True)
    commands = dict.fromkeys(_command(_trace_arguments(request, bundled, some)) for request, some in asked)
    return Script("\n".join(commands), "\n".join(lines) + "\n")


def of_comparison(pair: Pair) -> Script:
    """The script of two traces side by side."""
    links = [pair.side(side) for side in SIDES]
    asked = [
        "None" if view.is_base else f"ask('site_map', {side}, site={view.site!r}, window={view.window})"
        for side, view in zip(SIDES, (link.view for link in links), strict=True)
    ]
    maps = any(question != "None" for question in asked)
    more = (", same_model=True" if pair.same_model else "") + (", at_a=at[0], at_b=at[1]" if maps else "")
    lines = [
        _IMPORTS,
        *(["from core.cells.asking import ask"] if maps else []),
        "from core.compare import words",
        "from core.compare.tables import Compared",
        *(["from core.derived import derive"] if maps else []),
        "",
        *(f"{side} = {_code(link.request)}" for side, link in zip(SIDES, links, strict=True)),
        *([f"maps = [{', '.join(asked)}]  # what the layer × token maps patch"] if maps else []),
        "found, at = [], []" if maps else "found = []",
        f"for {'request, question in zip((a, b), maps)' if maps else 'request in (a, b)'}:  # one model at a time",
        "    model = core.load_model(**asdict(request.model))",
        "    found.append(core.trace(model, request))",
        *(["    at.append(None if question is None else derive(model, question))"] if maps else []),
        "    del model",
        f"compared = Compared(*found{more})",
        'print("\\n".join(words.sentences(compared)))',
        "print(compared.cells)",
    ]
    return Script(_command(["compare", urlencode(to_query(pair.shown()))]), "\n".join(lines) + "\n")


def of_averages(request: DerivedRequest, facts: FactSet, *, min_drop: float | None) -> Script:
    """The script of an answer of the kinds `averages` and `expert_averages`, averaged. `facts`: the set that the
    request's facts are; `min_drop`: the threshold of the drop, logits (None: none)."""
    settings, asked = request.get(), averages.trace_request(request, averages.NOBODY)
    experts = request.kind == averages.EXPERTS
    out = ["averages", *_model_arguments(request.model)]
    if facts.source != BUNDLED:
        out += _given("facts", _named(facts))
    if facts.relations:
        out += ["--relation", *facts.relations]
    out += ["--n", "all" if facts.n is None else str(facts.n)]
    if facts.seed:
        out += ["--facts-seed", str(facts.seed)]
    out += ["--min-drop", "all" if min_drop is None else _plain(min_drop)]
    if experts:
        out += ["--experts-at", settings["role"].replace(" ", "_")]
    else:
        out += ["--site", settings["site"], "--window", str(settings["window"])]
    out += _method_arguments(asked, asked.replacement)
    kind, table = ("experts_request", "expert_table") if experts else ("cells_request", "role_table")
    what = f"role={settings['role']!r}" if experts else f"site={settings['site']!r}, window={settings['window']}"
    lines = [
        _IMPORTS,
        "from core.averages import tables",
        f"from core.averages.questions import {kind}",
        "from core.cli_lists import facts_of",
        "from core.derived import derive",
        "from core.fact_sets import FactSet, choose",
        "",
        _chosen(facts),
        f"request = {kind}({_code(asked)}, facts, {what})",
        "model = core.load_model(**asdict(request.model))",
        "result = derive(model, request)",
        f"print(tables.{table}(result, min_drop={min_drop!r}))",
    ]
    return Script(_command(out), "\n".join(lines) + "\n")


def of_derived(request: DerivedRequest, *, bundled: Bundled, fact_set: FactSet | None = None) -> Script:
    """The script of what is more than a trace. Facts of the bundled list stand there by their numbers. `fact_set`: what
    the request's facts are, where they are one set: it stands in their place."""
    own = [fact for fact in request.facts if bundled(fact.case_id) != fact]
    if own:
        facts = "(\n" + "".join(f"    {_code(fact)},\n" for fact in request.facts) + ")"
    else:
        numbers = ", ".join(str(fact.case_id) for fact in request.facts)
        facts = f"[find(known, n) for n in ({numbers}{',' if len(request.facts) == 1 else ''})]"
    settings = "".join(f", {name}={value!r}" for name, value in request.get().items())
    lines = [
        "from dataclasses import asdict",
        "",
        "import core",
        f"from core import {'Fact, ' if own else ''}ModelSpec",
        "from core.derived import DerivedRequest, derive",
    ]
    if fact_set is not None:
        lines[3:4] = ["from core import ModelSpec", "from core.cli_lists import facts_of"]
        lines += ["from core.fact_sets import FactSet, choose", "", _chosen(fact_set)]
    elif request.facts:
        known = [] if own else ["from core.facts import bundled, find", "", "known = bundled()"]
        lines += [*known, f"facts = {facts}"]
    given = ", facts=facts" if request.facts else ""
    lines += [
        f"request = DerivedRequest.of({request.kind!r}, {_code(request.model)}{given}{settings})",
        "model = core.load_model(**asdict(request.model))",
        "result = derive(model, request)",
        "for name, table in result.tables.items():",
        "    print(name, table, sep='\\n')",
    ]
    asked = question(request, bundled, fact_set)
    command = _command(["derive", asked])
    if len(command.encode()) > _LONGEST:
        command = f"{_command(['derive', '/dev/stdin'])} <<'QUESTION'\n{asked}\nQUESTION"
    return Script(command, "\n".join(lines) + "\n")


def question(request: DerivedRequest, bundled: Bundled, fact_set: FactSet | None = None) -> str:
    """The request as JSON for the command `derive`: facts as their set, else those of the bundled list by their
    numbers; the model without what is as by default."""
    data = request.to_dict()
    fields = [(field.name, field.default) for field in dataclasses.fields(ModelSpec)]
    model = {name: getattr(request.model, name) for name, _ in fields}
    data["model"] = {name: model[name] for name, default in fields if name == "name" or model[name] != default}
    data["facts"] = dataclasses.asdict(fact_set) if fact_set is not None else [
        fact.case_id if bundled(fact.case_id) == fact else written
        for fact, written in zip(request.facts, data["facts"], strict=True)
    ]
    return json.dumps(data, ensure_ascii=False)


def together(scripts: Sequence[Script]) -> Script:
    """Several scripts, one after the other; of those with the same command the first."""
    unlike = {s.command: s.python for s in reversed(scripts)}
    commands = list(dict.fromkeys(s.command for s in scripts))
    programs = (unlike[command] for command in commands)
    return Script("\n".join(filter(None, commands)), "\n".join(filter(None, programs)))


_IMPORTS = "from dataclasses import asdict\n\nimport core\nfrom core import Fact, ModelSpec, TraceRequest"


def _trace_python(request: TraceRequest) -> str:
    lines = [
        _IMPORTS,
        "",
        f"request = {_code(request)}",
        "model = core.load_model(**asdict(request.model))",
        "result = core.trace(model, request)",
        'print(f"clean contrast {result.clean_contrast:+.3f}, drop {result.drop:+.3f} logits")',
        "print(result.frame)",
    ]
    return "\n".join(lines) + "\n"


def _trace_arguments(request: TraceRequest, bundled: Bundled, chosen: Sequence[str]) -> list[str]:
    fact, names = request.fact, request.replacement
    out = ["trace", *_model_arguments(request.model)]
    if bundled(fact.case_id) == fact:
        out += ["--fact", str(fact.case_id)]
    else:
        foil = "auto" if fact.foil_auto else fact.foil or ""
        for name, value in (("prompt", fact.prompt), ("subject", fact.subject), ("true", fact.true), ("foil", foil)):
            out += _given(name, value)
        if fact.occurrence is not None:
            out += ["--occurrence", str(fact.occurrence)]
        if fact.case_id:
            out += ["--case-id", str(fact.case_id)]
        names = names or tuple(chosen)  # the choice depends on a relation, which a typed fact has no option for
    out += _method_arguments(request, names)
    experts = request.experts
    if experts != "last":
        out += ["--experts", experts if isinstance(experts, str) else ",".join(map(str, experts))]
    return out


def _method_arguments(request: TraceRequest, names: Sequence[str]) -> list[str]:
    """Corruption and tokens. `names`: the subjects that stand in for a fact's own, where they are named."""
    if request.corruption == "noise":
        out = ["--noise", _plain(request.noise)]
    else:
        out = ["--corruption", request.corruption]
        if names:
            out += ["--replacement", *names]
    if not names:
        out += ["--draws", str(request.draws), "--seed", str(request.seed)]
    for name in ("special_tokens", "object_tokens"):
        if getattr(request, name) != getattr(TraceRequest(request.fact), name):
            out += [f"--{name.replace('_', '-')}", getattr(request, name)]
    if request.first_token:
        out.append("--first-token")
    return out


def _chosen(facts: FactSet) -> str:
    """A line of Python that chooses them."""
    return f"facts = choose({_code(facts)}, facts_of({_named(facts)!r}))"


def _named(facts: FactSet) -> str:
    """Their list as the commands name it."""
    return facts.source if facts.source == BUNDLED else f"{LIST}{facts.source}"


def _plain(value: float) -> str:
    return f"{value!r}".removesuffix(".0")


def _model_arguments(model: ModelSpec) -> list[str]:
    out = _given("model", model.name)
    for field in dataclasses.fields(ModelSpec):
        value = getattr(model, field.name)
        if field.name != "name" and value != field.default:
            out += _given(field.name, value)
    return out


def _given(name: str, value: str) -> list[str]:
    """An option and its value; in one word where the value would be taken for an option."""
    return [f"--{name}={value}"] if value.startswith("-") else [f"--{name}", value]


def _command(arguments: Sequence[str]) -> str:
    return shlex.join(["python", "-m", "core", *arguments])


def _code(value: Any) -> str:
    """A request, fact or model as Python code that makes it again, defaults left out."""
    if not dataclasses.is_dataclass(value):
        return repr(value)
    given = []
    for field in dataclasses.fields(value):
        now = getattr(value, field.name)
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        if now != default:
            given.append(f"{field.name}={_code(now)}")
    return f"{type(value).__name__}({', '.join(given)})"
