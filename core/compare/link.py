"""The share link of the Compare page: two of the Trace page's links, their parameters prefixed `a.` and `b.`.

Of b only what differs from a is written, and read so: a parameter that b does not have is a's. Its fact is taken
whole, from the one or from the other. Reading trusts nothing; no browser, no page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from .. import links
from ..browsing import BROWSING_NAMES, Browsing
from ..errors import InputError
from ..links import Link, Reader
from ..requests import CORRUPTIONS, Fact
from ..sites import MOE

SIDES = ("a", "b")
FACT = ("fact", "prompt", "subject", "true", "foil", "foil_auto", "occurrence", "case_id", "relation", "list")
"""Parameters that name a fact together."""
DEFAULTS = {
    "revision": "", "dtype": "auto", "device": "auto", "quantisation": "none", "placement": "auto",
    "corruption": "noise", "replacement": "", "special_tokens": "auto", "object_tokens": "space", "first_token": "0",
    "show": links.MEASURES[0], "site": MOE, "window": "1", "pos": "", "layer": "", "expert": "", "strip": "",
    **dict.fromkeys(BROWSING_NAMES, ""),
}  # fmt: skip
"""What a parameter that `links.to_query` leaves out stands for. Empty: nothing."""


@dataclass(frozen=True)
class Pair:
    """What the Compare page shows. `edited`: the side whose settings the sidebar shows; `same_model`: two models with
    different names are versions of one, so that their experts correspond. `problems`: what in the link cannot be."""

    a: Link
    b: Link
    edited: str = "b"
    same_model: bool = False
    problems: tuple[str, ...] = ()

    def side(self, name: str) -> Link:
        """The link of side `a` or `b`."""
        return self.a if name == "a" else self.b

    def with_side(self, name: str, link: Link) -> Pair:
        """With another link on one side."""
        return replace(self, problems=(), **{name: link})

    def swapped(self) -> Pair:
        """a as b and b as a."""
        return replace(self, a=self.b, b=self.a, problems=())

    def shown(self) -> Pair:
        """The same without what is open in the sidebar: for what has none."""
        a, b = (replace(link, browsing=Browsing()) for link in (self.a, self.b))
        return replace(self, a=a, b=b, edited=Pair.edited, problems=())

    def looking(self, *, layer: int | None, pos_a: int | None, pos_b: int | None) -> Pair:
        """With another cell chosen."""
        a, b = (
            replace(link, view=replace(link.view, layer=layer, pos=pos, expert=None, strip=None))
            for link, pos in ((self.a, pos_a), (self.b, pos_b))
        )
        return replace(self, a=a, b=b, problems=())

    def showing(self, *sides: str, **changes: Any) -> Pair:
        """With other maps on the sides that are named, on both if none is: `measure`, `site`, `window`."""
        new = {name: replace(self.side(name), view=replace(self.side(name).view, **changes)) for name in sides or SIDES}
        return replace(self, problems=(), **new)


def to_query(pair: Pair) -> dict[str, str]:
    """The parameters of the link, in a fixed order."""
    a, b = (link.to_query() for link in (pair.a, pair.b))
    told = {name: value for name, value in b.items() if a.get(name) != value}
    told |= {name: DEFAULTS[name] for name in a if name not in b and name in DEFAULTS}
    if any(a.get(name) != b.get(name) for name in FACT):
        told |= {name: b[name] for name in FACT if name in b}
    if "model" in told and "revision" in b:  # another model does not take over a revision
        told["revision"] = b["revision"]
    out = {f"a.{name}": value for name, value in a.items()}
    out |= {f"b.{name}": told[name] for name in links.NAMES if name in told}
    if pair.edited != "b":
        out["edit"] = pair.edited
    if pair.same_model:
        out["same_model"] = "1"
    return out


def from_query(params: Mapping[str, str], *, bundled: Callable[[int], Fact | None], default: Fact) -> Pair:
    """Read a link's parameters. `bundled`, `default`: as for `links.from_query`. Never raises for what stands there.

    Without any parameter it is the default fact, corrupted by noise and by another subject.
    """
    given = {side: _of(params, side) for side in SIDES}
    read = Reader(params)
    edited = read.choice("edit", SIDES, "b")
    same_model = read.choice("same_model", ("0", "1"), "0") == "1"
    told = given["b"]
    merged = dict(given["a"])
    if any(name in told for name in FACT):
        merged = {name: value for name, value in merged.items() if name not in FACT}
    if told.get("model", merged.get("model")) != merged.get("model"):
        merged.pop("revision", None)
    merged = {name: value for name, value in (merged | told).items() if value or DEFAULTS.get(name) != ""}
    if not any(given.values()):
        merged = {"corruption": CORRUPTIONS[1]}
    a, b = (links.from_query(side, bundled=bundled, default=default) for side in (given["a"], merged))
    problems = [f"a: {problem}" for problem in a.problems]
    problems += [f"b: {problem}" for problem in b.problems if problem not in a.problems]
    a, b = (replace(link, view=link.view.maps(), problems=()) for link in (a, b))
    return Pair(a, b, edited, same_model, (*problems, *read.problems))


def from_text(text: str, *, bundled: Callable[[int], Fact | None], default: Fact) -> Pair:
    """A whole address of the Compare page, or its parameters. Raises `InputError` where it says something that cannot
    be: a program must not go on with a guess."""
    try:
        query = urlsplit(text).query if "?" in text else text
    except ValueError:  # such as half of the brackets around an IPv6 address
        query = ""
    params = dict(parse_qsl(query, keep_blank_values=True))
    if not any(name.startswith(("a.", "b.")) for name in params):
        raise InputError(
            "That is no link of the Compare page.",
            "Copy it from the page (Link), or write one: 'a.model=demo&a.fact=17&b.noise=1'.",
            field="link",
        )
    pair = from_query(params, bundled=bundled, default=default)
    if pair.problems:
        raise InputError(" ".join(pair.problems), "Copy the whole link from the page.", field="link")
    return pair


def _of(params: Mapping[str, str], side: str) -> dict[str, str]:
    """The parameters of one side, without its prefix."""
    start = f"{side}."
    return {name[len(start) :]: value for name, value in params.items() if name.startswith(start)}
