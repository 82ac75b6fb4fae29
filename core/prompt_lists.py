"""Plain prompts without a subject: read from pasted text or a text file, one prompt per line.

Knows limits and encodings; no tokenizer, no store, no page.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from .errors import InputError
from .requests import digest

MOST_PROMPTS, MOST_CHARACTERS, LONGEST = 2000, 200_000, 4000
"""Prompts of one set, their characters together, and characters of one of them."""
SHORT = 1500
"""Up to so many characters stand in a link themselves; longer ones are kept in the store under their key."""


def read_lines(source: str | bytes, name: str = "The text") -> tuple[str, ...]:
    """The prompts of a text, one per line; white space at both ends of a line and empty lines are left out. Within a
    line all stays as it is, as every space counts among the tokens.

    `source`: a text, or a file's content (UTF-8, or UTF-16 with its mark); `name`: what messages call it. Raises
    `InputError` that names the line (counted from 1).
    """
    text = _decoded(source, name) if isinstance(source, bytes) else source
    prompts = []
    for number, raw in enumerate(re.split(r"\r\n|\r|\n", text), start=1):
        line = raw.strip().strip("\ufeff").strip()  # files put together have a byte order mark before any line
        if not line:
            continue
        wrong = ""
        if "{}" in line:
            wrong = "has a {} in it. Write the subject out: plain prompts have none"
        elif any(unicodedata.category(c) in ("Cc", "Cs") and c != "\t" for c in line):
            wrong = "has characters that are no text. Save it as a plain text file"
        elif len(line) > LONGEST:
            wrong = f"has {len(line):,} characters, more than {LONGEST:,}. Shorten it"
        if wrong:
            what, _, then = wrong.partition(". ")
            raise InputError(f"{name}: line {number} {what}.", f"{then}.", field="prompts")
        prompts.append(line)
    if not prompts:
        raise InputError(f"{name} holds no prompt.", "Give one prompt per line.", field="prompts")
    total = sum(map(len, prompts))
    for count, most, what in ((len(prompts), MOST_PROMPTS, "prompts"), (total, MOST_CHARACTERS, "characters")):
        if count > most:
            raise InputError(f"{name} has {count:,} {what}.", f"At most {most:,} are taken.", field="prompts")
    return tuple(prompts)


def key_of(prompts: Sequence[str]) -> str:
    """The content key of a list of prompts: the same for the same lines, 32 hex digits."""
    return digest("prompts", list(prompts))


def is_short(prompts: Sequence[str]) -> bool:
    """Whether the prompts can stand in a link themselves."""
    return len("\n".join(prompts)) <= SHORT


def _decoded(content: bytes, name: str) -> str:
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(
            f"{name} is not a text in UTF-8 (line {line}).", "Save it as UTF-8, one prompt per line.", field="prompts"
        ) from None
