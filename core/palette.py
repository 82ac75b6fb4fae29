"""The colours of every chart, light and dark. Knows no data and no chart library."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Palette:
    """`low`, `mid`, `high`: the diverging scale, centred on 0. `blank`: an expert that is not routed; `dense`: a layer
    without experts; `missing`: a value that is undefined; `mark`: the chosen cell; `expert`: the chosen expert.

    Any two of low (or left), high, expert, kept and joined are far apart for colour-blind eyes too (measured in
    tests/test_palette.py): they stand for different things in one chart.
    """

    name: str
    background: str
    ink: str
    muted: str
    grid: str
    low: str
    mid: str
    high: str
    blank: str
    dense: str
    missing: str
    mark: str
    expert: str
    kept: str
    left: str
    joined: str
    subject: str


LIGHT = Palette(
    name="light", background="#ffffff", ink="#1f2530", muted="#6b7280", grid="#e5e7eb",
    low="#b2600a", mid="#f4f4f5", high="#2166ac", blank="#fafafa", dense="#e5e7eb", missing="#d4d4d8",
    mark="#111827", expert="#bb1768", kept="#6f7680", left="#c2570c", joined="#0b5345", subject="#1d4ed8",
)  # fmt: skip

DARK = Palette(
    name="dark", background="#10141b", ink="#e6e9ef", muted="#9aa4b2", grid="#2a313c",
    low="#f1a340", mid="#252b34", high="#67a9cf", blank="#171c24", dense="#2a313c", missing="#414a57",
    mark="#f8fafc", expert="#ff2e93", kept="#7d8590", left="#f59e4b", joined="#5eead4", subject="#8ab4ff",
)  # fmt: skip


def palette(theme: str | None) -> Palette:
    """The palette of a theme name; light unless it is `dark`."""
    return DARK if theme == "dark" else LIGHT
