"""What is looked at in one trace, as URL query parameters and back: the maps' site, the cell, the experts, the section.

Reading trusts nothing (see `core.links`, which reads the question itself). Values only; knows no result and no page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .sites import MOE, SITES

if TYPE_CHECKING:
    from .links import Reader

MEASURES = ("restoration", "rescue")
SPREAD = "rescue_sd"
SHOWN = (*MEASURES, SPREAD)
"""What the maps' colours may show: a measure, or how far the draws lie apart."""
SHARED = "shared"
SECTIONS = ("coalition", "minimal", "necessity", "controls", "draws")
"""What can be opened below the chosen cell."""
SCOPES = ("cell", "layer", "pos", "model")
"""Where a minimal set is searched: the chosen cell, its layer, its position, everywhere."""
TARGET = 0.8
MAX_WINDOW = 1000
MAX_MEMBERS = 1024

VIEW_NAMES = (
    "show", "site", "window", "pos", "layer", "expert", "strip", "section", "coalition", "scope", "target", "check",
)  # fmt: skip


@dataclass(frozen=True)
class View:
    """What is looked at in one result. None: nothing chosen.

    `measure`: what colours the maps (one of `SHOWN`); `pos`, `layer`: the chosen cell; `expert`: an expert of that
    layer (an index, or `shared`); `strip`: the routing strip's layer where it is not the cell's. `site`, `window`: what
    the layer × token map patches, in how many layers at once. `section`: what is open below the cell; `coalition`: the
    ticked experts of the cell, rising, `shared` last; `scope`, `target`: of the minimal set; `check`: whether the other
    corruption is asked too.
    """

    measure: str = MEASURES[0]
    pos: int | None = None
    layer: int | None = None
    expert: int | str | None = None
    strip: int | None = None
    site: str = MOE
    window: int = 1
    section: str | None = None
    coalition: tuple[int | str, ...] = ()
    scope: str = SCOPES[0]
    target: float = TARGET
    check: bool = False

    @property
    def is_base(self) -> bool:
        """The layer × token map is the trace's own: layer patches of one layer."""
        return self.site == MOE and self.window == 1

    def maps(self) -> View:
        """The same maps, cell and expert, coloured by a measure, for what knows no more."""
        measure = self.measure if self.measure in MEASURES else MEASURES[0]
        return View(measure, self.pos, self.layer, self.expert, self.strip, self.site, self.window)

    def elsewhere(self) -> View:
        """The same way to look, at no cell."""
        return View(self.measure, site=self.site, window=self.window, section=self.section, check=self.check)

    def of_neighbour(self, last: int) -> View:
        """The same way to look at another fact. `last`: the last position of the prompt that is left. Layer and expert
        stay where it is looked at; another position means something else in another prompt."""
        view = self.elsewhere()
        return replace(view, layer=self.layer, expert=self.expert) if self.pos in (None, last) else view

    def at(self, layer: int | None, pos: int | None, expert: int | str | None = None) -> View:
        """The same way to look, at another cell; the ticked experts stay where it is the same layer and position."""
        same = (layer, pos) == (self.layer, self.pos)
        coalition = self.coalition if same else ()
        return replace(self, layer=layer, pos=pos, expert=expert, strip=None, coalition=coalition)


def view_query(view: View) -> dict[str, str]:
    """The parameters of a view, in a fixed order; what is as it is by default is left out."""
    default, out = View(), {}
    if view.measure != default.measure:
        out["show"] = view.measure
    if view.site != default.site:
        out["site"] = view.site
    if view.window != default.window:
        out["window"] = str(view.window)
    for name in ("pos", "layer", "expert", "strip", "section"):
        if getattr(view, name) is not None:
            out[name] = str(getattr(view, name))
    if view.coalition:
        out["coalition"] = ",".join(map(str, view.coalition))
    if view.scope != default.scope:
        out["scope"] = view.scope
    if view.target != default.target:
        out["target"] = repr(view.target).removesuffix(".0")
    if view.check:
        out["check"] = "1"
    return out


def read_view(read: Reader) -> View:
    """The inverse of `view_query`; what cannot be is replaced and named in `read.problems`."""
    section = read.choice("section", ("", *SECTIONS), "")
    view = View(
        measure=read.choice("show", SHOWN, SHOWN[0]),
        pos=read.whole("pos", None, low=0),
        layer=read.whole("layer", None, low=0),
        expert=SHARED if read.text("expert", "") == SHARED else read.whole("expert", None, low=0),
        strip=read.whole("strip", None, low=0),
        site=read.choice("site", SITES, MOE),
        window=read.whole("window", 1, low=1, high=MAX_WINDOW),
        section=section or None,
        coalition=_members(read),
        scope=read.choice("scope", SCOPES, SCOPES[0]),
        target=read.number("target", TARGET),
        check=read.choice("check", ("0", "1"), "0") == "1",
    )
    if view.layer is None and (view.expert is not None or view.coalition):
        read.problems.append("The link names an expert but no layer, so no expert is marked.")
        view = replace(view, expert=None, coalition=())
    return view


def _members(read: Reader) -> tuple[int | str, ...]:
    parts = [part for part in read.text("coalition", "").split(",") if part]
    good = all(part == SHARED or (part.isascii() and part.isdigit() and len(part) <= 9) for part in parts)
    if not good or len(parts) > MAX_MEMBERS:
        read.odd("coalition", None, "experts with commas between them, such as 3,17")
        return ()
    return members(int(part) if part != SHARED else SHARED for part in parts)


def members(experts) -> tuple[int | str, ...]:  # noqa: ANN001 - any iterable of int | str
    """A coalition's experts, each once, rising, `shared` last."""
    chosen = set(experts)
    return (*sorted(e for e in chosen if e != SHARED), *([SHARED] if SHARED in chosen else []))


def check_view(
    view: View, *, n_tokens: int, moe_layers: Sequence[int], n_layers: int, n_experts: int, shared: bool
) -> tuple[View, list[str]]:
    """The view with everything dropped that this result does not have, and a sentence about each.

    At another site than the MoE output the cell may be one of a dense layer: then it has no experts.
    """
    problems = []
    if view.pos is not None and view.pos >= n_tokens:
        problems.append(f"There is no position {view.pos}: the prompt has {n_tokens} tokens (0 to {n_tokens - 1}).")
        view = replace(view, pos=None, layer=None, expert=None, coalition=())
    if view.window > n_layers:
        problems.append(f"A window of {view.window} layers is more than the model has: {n_layers} are used.")
        view = replace(view, window=n_layers)
    for name in ("layer", "strip"):
        layer = getattr(view, name)
        if layer is None or layer in moe_layers:
            continue
        of_cell = name == "layer"
        if of_cell and view.site != MOE and layer < n_layers:
            view = replace(view, expert=None, coalition=())
            continue
        why = f"the model has {n_layers} (0 to {n_layers - 1})" if layer >= n_layers else "it is dense"
        problems.append(f"Layer {layer} has no experts to show: {why}.")
        view = replace(view, **{name: None} | ({"expert": None, "coalition": ()} if of_cell else {}))
    if view.expert == SHARED and not shared:
        problems.append("This model has no shared expert.")
        view = replace(view, expert=None)
    beyond = [e for e in (view.expert, *view.coalition) if isinstance(e, int) and e >= n_experts]
    if beyond:
        problems.append(f"There is no expert {beyond[0]}: each layer has {n_experts} (0 to {n_experts - 1}).")
    kept = tuple(e for e in view.coalition if e not in beyond and (e != SHARED or shared))
    return replace(view, expert=None if view.expert in beyond else view.expert, coalition=kept), problems
