"""What part a position plays in its prompt: the classes over which maps and routing of many facts are averaged.

The five of ROME's averaged traces (Meng et al. 2022, figure 2), and one for what stands before the subject.
"""

from __future__ import annotations

from collections.abc import Sequence

BEFORE, FIRST_SUBJECT, MIDDLE_SUBJECT, LAST_SUBJECT, FURTHER, LAST = ROLES = (
    "before subject", "first subject", "middle subject", "last subject", "further", "last token",
)  # fmt: skip

NO_SUBJECT = "no subject"
"""The role of a position of a prompt without a subject, but for the last token."""

OTHERS, ALL = "others", "all"
CLASSES = (FIRST_SUBJECT, LAST_SUBJECT, LAST, OTHERS, ALL)
"""Position classes over which routing is counted: three roles, the remaining positions, every position."""


def roles_of(n_tokens: int, subject_positions: Sequence[int]) -> list[str]:
    """The role of every position of a prompt of `n_tokens` tokens.

    A subject of one token is a last subject token; the last position is always the last token, also where the
    subject ends there. Without `subject_positions` all others have `NO_SUBJECT`.
    """
    if not subject_positions:
        return [NO_SUBJECT] * (n_tokens - 1) + [LAST]
    first, last = min(subject_positions), max(subject_positions)
    out = []
    for pos in range(n_tokens):
        if pos == n_tokens - 1:
            out.append(LAST)
        elif pos < first:
            out.append(BEFORE)
        elif pos > last:
            out.append(FURTHER)
        elif pos == last:
            out.append(LAST_SUBJECT)
        else:
            out.append(FIRST_SUBJECT if pos == first else MIDDLE_SUBJECT)
    return out


def class_of(role: str) -> str:
    """The position class of a role: itself, or `OTHERS`."""
    return role if role in CLASSES else OTHERS
