"""A guided tour in five steps on the bundled demo model: what to look at, in which order, with live numbers.

Each step is a `core.links.View` of one request and a few words about it. No page.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import method, views
from .formats import logits, percent
from .links import View
from .results import MIN_DROP, TraceResult, expert_name


@dataclass(frozen=True)
class Stop:
    """One step. `words`: plain text; `view`: what the page shows with it."""

    title: str
    words: str
    view: View


def stops(result: TraceResult) -> list[Stop]:
    """The five steps through this result."""
    request, prov = result.request, result.provenance
    fact = request.fact
    layer, pos = views.best_cell(result) or (prov.moe_layers[0], views.last_pos(result))
    early = View(layer=layer, pos=pos)
    at = method.spot(result)
    chosen = View(layer=at.layer, pos=at.pos, expert=at.expert)
    labels = views.token_labels(result)
    rescue = _cell(result, layer, pos)
    about = f"The model is {prov.model}; the sidebar has others."
    if prov.model == "demo":
        about = "This is the bundled demo model, small and made for learning; the sidebar has others."
    share = "" if result.drop < MIN_DROP else f", {percent(rescue / result.drop)} of the drop"
    expert = (
        "At the last token no expert of the clean run stands out here."
        if at.expert is None
        else f"{expert_name(at.layer, at.expert)} alone brings back {logits(at.expert_rescue)} of the "
        f"{logits(at.layer_rescue)} logits that the whole layer {at.layer} does. Every square of the map is "
        "such a patch of one expert; the table lists those that are routed here."
    )
    return [
        Stop(
            "A fact, and what the model says",
            f"The prompt is “{fact.text}”. The model prefers {fact.true.strip()} to {prov.foil_token.strip()} by "
            f"{logits(result.clean_contrast)} logits (the clean contrast). {about}",
            View(),
        ),
        Stop(
            "Noise takes it away",
            f"With noise on the embeddings of “{fact.subject.strip()}” the contrast falls to "
            f"{logits(result.corrupt_contrast)}: the drop is {logits(result.drop)} logits. What follows asks "
            "what brings it back.",
            View(),
        ),
        Stop(
            "Where clean values restore it",
            "Each cell of the first map puts back the clean output of one layer's experts at one token. The strongest "
            f"is layer {layer} at {labels[pos]}: {logits(rescue)} logits{share}. Click "
            "any cell to see its experts.",
            early,
        ),
        Stop("Which expert it was", expert, chosen),
        Stop(
            "Is it more than an anecdote?",
            "The last chart shows where the tokens are routed in both runs. Other facts are one click away in the "
            "sidebar, another seed draws other noise, and the Study page asks the same of many facts, with controls "
            "and intervals.",
            chosen,
        ),
    ]


def _cell(result: TraceResult, layer: int, pos: int) -> float:
    cells = views.patches(result, ("layer",), pos)
    return float(cells.loc[cells.layer == layer, "rescue"].iloc[0])
