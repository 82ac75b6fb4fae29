"""What is leafed through to choose a fact: where from, which relation, which words. As query parameters and back.

No question and no number depends on it. Values only; reading trusts nothing (see `core.links`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .links import Reader

BUNDLED, LISTS, TYPED = "bundled", "lists", "typed"
SOURCES = (BUNDLED, LISTS, TYPED)
BROWSING_NAMES = ("choose", "choose_list", "choose_relation", "choose_text")
MAX_WORDS = 100
"""Longest text that is searched for, in characters."""


@dataclass(frozen=True)
class Browsing:
    """`source`: one of `SOURCES`; empty: where the fact that is looked at comes from. `stored`: the stored list that is
    open, empty: the fact's own. `relation`: only its facts are listed; empty: all. `words`: what they must have."""

    source: str = ""
    stored: str = ""
    relation: str = ""
    words: str = ""

    def following(self) -> Browsing:
        """The same relation and words, in what the fact that is looked at comes from."""
        return replace(self, source="", stored="")


def browsing_query(browsing: Browsing) -> dict[str, str]:
    """The parameters, in a fixed order; what is empty is left out."""
    values = (browsing.source, browsing.stored, browsing.relation, browsing.words)
    return {name: value for name, value in zip(BROWSING_NAMES, values, strict=True) if value}


def read_browsing(read: Reader) -> Browsing:
    """The inverse of `browsing_query`; what cannot be is replaced and named in `read.problems`."""
    words = read.text("choose_text", "").strip()
    if len(words) > MAX_WORDS:
        read.odd("choose_text", None, f"at most {MAX_WORDS} characters long")
        words = ""
    return Browsing(
        source=read.choice("choose", ("", *SOURCES), ""),
        stored=read.text("choose_list", "").strip(),
        relation=read.text("choose_relation", ""),
        words=words,
    )
