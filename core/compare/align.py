"""Which token of the one prompt corresponds to which of the other: the columns that two maps share.

Prompts with the same tokens correspond one to one. Prompts of one template (the same text around another subject, or
the same text with and without special tokens) correspond outward from the subject; of subjects of different length the
last tokens correspond, and the others from the first on. Other prompts do not correspond. Pure values.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..prompts import subject_span
from ..requests import Fact
from ..results import Provenance, TraceResult
from ..roles import roles_of
from ..views import token_label, visible


@dataclass(frozen=True)
class Column:
    """A column of both maps: the position on each side (None: no such token there), its unique label, whether it is a
    token of the subject."""

    a: int | None
    b: int | None
    label: str
    subject: bool


@dataclass(frozen=True)
class Alignment:
    """`columns`: of both maps, in order; empty where the prompts do not correspond, and then `why_not` says why.
    `same_tokens`: both prompts are the same token ids."""

    columns: tuple[Column, ...]
    same_tokens: bool = False
    why_not: str = ""

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Positions (a, b) that correspond."""
        return [(c.a, c.b) for c in self.columns if c.a is not None and c.b is not None]

    def column_of(self, side: str, pos: int | None) -> int | None:
        """The index of the column with that position of a side."""
        found = (i for i, column in enumerate(self.columns) if pos is not None and getattr(column, side) == pos)
        return next(found, None)

    def partner(self, side: str, pos: int) -> int | None:
        """The position of the other side that corresponds to `pos` of side `a` or `b`."""
        column = self.column_of(side, pos)
        return None if column is None else getattr(self.columns[column], "b" if side == "a" else "a")


def align(a: TraceResult, b: TraceResult) -> Alignment:
    """The columns that the maps of two results share."""
    left, right = a.provenance, b.provenance
    if left.tokens == right.tokens and left.subject_positions == right.subject_positions:
        columns = tuple(
            Column(pos, pos, token_label(token, pos), pos in left.subject_positions)
            for pos, token in enumerate(left.tokens)
        )
        return Alignment(columns, left.token_ids == right.token_ids)
    if around(a.request.fact) != around(b.request.fact):
        return Alignment((), why_not="The prompts are of different templates, so their tokens do not correspond.")
    columns = _by_template(left, right)
    if not any(c.a is not None and c.b is not None and not c.subject for c in columns):
        return Alignment((), why_not="The tokenizers cut the prompts differently, so their tokens do not correspond.")
    return Alignment(columns)


def same_role(a: TraceResult, pos: int, b: TraceResult) -> int:
    """The position of b that plays the part in its prompt that `pos` plays in a's; the last one where none does."""
    left, right = (roles_of(len(r.provenance.tokens), r.provenance.subject_positions) for r in (a, b))
    return next((i for i in reversed(range(len(right))) if right[i] == left[pos]), len(right) - 1)


def around(fact: Fact) -> tuple[str, str]:
    """The text before and after the subject."""
    start, end = subject_span(fact)
    return fact.text[:start], fact.text[end:]


def _by_template(left: Provenance, right: Provenance) -> tuple[Column, ...]:
    (first_a, *_), (first_b, *_) = left.subject_positions, right.subject_positions
    end_a, end_b = left.subject_positions[-1] + 1, right.subject_positions[-1] + 1
    before = _common(left.tokens[:first_a][::-1], right.tokens[:first_b][::-1])
    after = _common(left.tokens[end_a:], right.tokens[end_b:])
    pairs: list[tuple[int | None, int | None]] = [(pos, None) for pos in range(first_a - before)]
    pairs += [(None, pos) for pos in range(first_b - before)]
    pairs += [(first_a - n, first_b - n) for n in range(before, 0, -1)]
    pairs += _subjects(list(left.subject_positions), list(right.subject_positions))
    pairs += [(end_a + n, end_b + n) for n in range(after)]
    pairs += [(pos, None) for pos in range(end_a + after, len(left.tokens))]
    pairs += [(None, pos) for pos in range(end_b + after, len(right.tokens))]
    return tuple(_column(left, right, *pair) for pair in pairs)


def _subjects(a: list[int], b: list[int]) -> list[tuple[int | None, int | None]]:
    """The last tokens correspond, the others from the first on; the longer one's surplus stands before its last."""
    shared = min(len(a), len(b)) - 1
    pairs: list[tuple[int | None, int | None]] = list(zip(a[:shared], b[:shared], strict=True))
    pairs += [(pos, None) for pos in a[shared:-1]]
    pairs += [(None, pos) for pos in b[shared:-1]]
    return [*pairs, (a[-1], b[-1])]


def _common(a: list[str], b: list[str]) -> int:
    """How many elements from the first on are equal."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _column(left: Provenance, right: Provenance, a: int | None, b: int | None) -> Column:
    subject = a in left.subject_positions or b in right.subject_positions
    if a is None or b is None:
        side, pos, tokens = ("b", b, right.tokens) if a is None else ("a", a, left.tokens)
        return Column(a, b, f"{token_label(tokens[pos], pos)} {side}", subject)  # type: ignore[index,arg-type]
    if left.tokens[a] == right.tokens[b]:
        shown = token_label(left.tokens[a], a)
        return Column(a, b, shown if a == b else f"{shown[:-1]}|{b})", subject)
    pieces = "|".join(_short(tokens[pos]) for tokens, pos in ((left.tokens, a), (right.tokens, b)))
    return Column(a, b, f"{pieces} ({a})" if a == b else f"{pieces} ({a}|{b})", subject)


def _short(token: str) -> str:
    shown = visible(token)
    return shown if len(shown) <= 9 else shown[:8] + "…"
