"""Downloads: charts as PNG, SVG and self-contained HTML, tables as CSV and Parquet, each saying where it comes from.

The request and the provenance go along everywhere: comment lines of a CSV, metadata of a Parquet or PNG, the text
under a chart. Whatever a person typed is escaped for the place where it stands. No Streamlit, no model.
"""

from __future__ import annotations

import dataclasses
import json
import re
import textwrap
from typing import Any

import pandas as pd

from .compare import words
from .compare.tables import SIDES, Compared
from .derived import DerivedResult
from .embedding import drawable, one_line, png_with, svg_with
from .formats import bound, logits, rough
from .picture import Picture, chart_page
from .results import TraceResult
from .tables import table_bytes
from .views import corruption, rounding

Result = TraceResult | DerivedResult | Compared

CSV_COMMENTS = 3
"""Comment lines at the top of every CSV: `pandas.read_csv(path, skiprows=3)` reads the rest."""

WIDTH = 860
"""Width of an exported chart in pixels, before the PNG's scale of 2."""


def origin(result: Result) -> dict[str, Any]:
    """Request and provenance as plain JSON values, of each side where there are two: all that it takes to get the same
    numbers again."""
    if isinstance(result, Compared):
        return {side: origin(result.side(side)) | _map_origin(result.at(side)) for side in SIDES}
    if isinstance(result, DerivedResult):
        return {"request": result.request.to_dict(), "provenance": result.provenance}
    return {"request": result.request.to_dict(), "provenance": dataclasses.asdict(result.provenance)}


def _map_origin(at: DerivedResult | None) -> dict[str, Any]:
    """What is added to the origin of a trace whose layer × token map is another answer's."""
    return {} if at is None else {"layer_token_map": origin(at)}


def notes(result: Result) -> list[str]:
    """What has to be said of the numbers, of each side's where there are two: each sentence once."""
    if isinstance(result, Compared):
        return list(dict.fromkeys([*notes(result.a), *notes(result.b)]))
    provenance = result.provenance
    return list(provenance.get("notes", []) if isinstance(result, DerivedResult) else provenance.notes)


def caption(result: Result) -> list[str]:
    """What was asked and with what it was answered, in a few lines for people."""
    if isinstance(result, DerivedResult):
        return _derived_caption(result)
    if isinstance(result, Compared):
        sides = [f"{name}: {line}" for name in SIDES for line in caption(result.side(name))[:-1]]
        maps = words.map_note(result).rstrip(": ")
        return [words.changed(result), *([f"Layer × token maps: {maps.lower()}."] if maps else []), *sides,
                caption(result.b)[-1]]  # fmt: skip
    request, prov = result.request, result.provenance
    fact = request.fact
    model = _model(prov.model, prov.revision)
    draws = "1 draw" if request.draws == 1 else f"{request.draws} draws"
    extras = [f"special tokens {request.special_tokens}", f"object tokens {request.object_tokens}"]
    if request.first_token:
        extras.append("first token of each object")
    how = corruption(result) + (f" (sigma {rough(prov.noise_sigma)})" if request.corruption == "noise" else "")
    return [
        f"“{fact.text}” · subject {fact.subject} · true {prov.true_token.strip()} · foil {prov.foil_token.strip()}",
        f"clean contrast {logits(result.clean_contrast)}, corrupt {logits(result.corrupt_contrast)}, "
        f"drop {logits(result.drop)} logits" + (f" · noise floor: {floor}" if (floor := rounding(prov)) else ""),
        f"model {model} ({prov.dtype}, {prov.device}) · {how}"
        f" · {draws} · seed {request.seed} · case_id {fact.case_id} · " + " · ".join(extras),
        *([f"weights {prov.quantisation}"] if prov.quantisation else []),
        *_noted(result),
        _versions(prov.versions),
    ]


def _derived_caption(result: DerivedResult) -> list[str]:
    """The same for what is more than a trace. The answer's own words (`values["caption"]`, lines) come first."""
    request, prov = result.request, result.provenance
    # 0 is a choice: the first seed, layer or expert, no noise, a contribution taken out
    chosen = [(name, value) for name, value in request.get().items() if value or type(value) in (int, float)]
    settings = [f"{name} {_short(value)}" for name, value in chosen]
    facts = [f"{len(request.facts)} fact{'s' if len(request.facts) != 1 else ''}"] if request.facts else []
    floor = prov.get("noise_floor")
    return [
        *result.values.get("caption", [request.title]),
        " · ".join([*facts, *settings]),
        f"model {_model(prov['model'], prov['revision'])} ({prov['dtype']}, {prov['device']})"
        + (f" · noise floor {bound(floor)} logits" if floor else ""),
        *([f"weights {prov['quantisation']}"] if prov["quantisation"] else []),
        *_noted(result),
        _versions(prov["versions"]),
    ]


def _noted(result: Result) -> list[str]:
    return [f"Note: {note}" for note in notes(result)]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"


def _model(name: str, revision: str | None) -> str:
    return name + (f" @ {revision}" if revision else "")


def _versions(versions: dict[str, str]) -> str:
    return "ExpertScope · " + ", ".join(f"{name} {value}" for name, value in sorted(versions.items()))


def file_stem(result: Result, what: str) -> str:
    """A file name without ending: plain ASCII whatever the subject is."""
    if isinstance(result, Compared):
        return file_stem(result.b, file_stem(result.a, what)[:60])
    parts = [what, result.request.model.name.split("/")[-1]]
    if isinstance(result, TraceResult):
        parts += [result.request.fact.subject, str(result.request.fact.case_id)]
    return re.sub(r"[^A-Za-z0-9.-]+", "_", "_".join(parts)).strip("_.-")[:100]


def csv(table: pd.DataFrame, result: Result, what: str) -> bytes:
    """UTF-8 CSV. The first `CSV_COMMENTS` lines are comments: what it is, the request, the provenance (JSON); or what
    it is, and both of side a, both of side b."""
    about = origin(result)
    lines = [f"# ExpertScope: {one_line(what)}"]
    lines += [f"# {name}: {json.dumps(about[name])}" for name in about]
    return ("\n".join(lines) + "\n").encode() + table_bytes(table, ".csv")


def parquet(table: pd.DataFrame, result: Result, what: str) -> bytes:
    """Parquet with request and provenance as JSON under the file's metadata key `expertscope`."""
    return table_bytes(table, ".parquet", metadata={"what": what, **origin(result)})


def svg(picture: Picture, result: Result, title: str) -> bytes:
    """The chart with title and caption as SVG; request and provenance in its `metadata` element."""
    import vl_convert

    return svg_with(vl_convert.vegalite_to_svg(drawable(_spec(picture, result, title))), origin(result))


def png(picture: Picture, result: Result, title: str) -> bytes:
    """The chart with title and caption as PNG at twice its size; request and provenance in its text chunk."""
    import vl_convert

    return png_with(vl_convert.vegalite_to_png(drawable(_spec(picture, result, title)), scale=2), origin(result))


def page(picture: Picture, result: Result, title: str) -> bytes:
    """One HTML file with the interactive chart, its libraries, the caption, request and provenance. Works offline."""
    return chart_page(
        picture, title, tab=f"{title} · {subject(result)}", lines=caption(result), about=origin(result),
        width=WIDTH,
    )  # fmt: skip


def subject(result: Result) -> str:
    """What a result is about, in a few words."""
    if isinstance(result, Compared):
        return f"{subject(result.a)} and {subject(result.b)}"
    return result.request.fact.subject if isinstance(result, TraceResult) else result.request.title


def _spec(picture: Picture, result: Result, title: str) -> dict[str, Any]:
    lines = [part for line in caption(result) for part in textwrap.wrap(one_line(line), 130) or [""]]
    return picture.standalone(width=WIDTH, title=title, subtitle=lines)
