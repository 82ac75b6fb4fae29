"""Pieces of HTML and Markdown. Everything that a person or a model wrote is escaped here and nowhere else."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from core.errors import ExpertScopeError
from core.formats import count as counted
from core.formats import probability
from core.views import visible

_CAUTION = "light-dark(#b45309, #f59e4b)"
_ON_PAGES = {
    " (--foil auto for all of them)": "",
    "--foil auto": "the switch below a typed fact's objects",
    "--first-token": "“First token of a longer object” under Tokens in the sidebar",
    "--occurrence": "occurrence",
    "--replacement": "“Other subject” in the sidebar",
    "--cases scan": "the case set scan",
    "--no-by-subject": "“by subject” among the settings",
}
"""An option of the command line that a message names → where that is on a page."""
_ASIDE = re.compile(r" \(--[a-z][^()]*\)")
"""An option in brackets that no page has."""
_MARK = "background:rgba(33,102,172,.18);border-bottom:2px solid #3f83c4;border-radius:4px;padding:.05em .25em"


def escape(text: str) -> str:
    """Text as HTML."""
    return html.escape(text, quote=True)


def plain(text: str) -> str:
    """Text as Markdown that shows exactly this text."""
    return re.sub(r"([\\`*_{}\[\]()#+\-.!|<>~$:&@^=\"'])", r"\\\1", " ".join(text.split()))


def amount(n: int, what: str) -> str:
    """A number of things, such as “1 token”, “2,000 tokens”."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def error(problem: ExpertScopeError) -> str:
    """What happened, and what to do next, as Markdown."""
    step = on_page(problem.next)
    return plain(on_page(problem.what)) + (f"  \n{plain(step)}" if step else "")


def on_page(sentence: str) -> str:
    """A message as a page says it: the place of what is an option on the command line."""
    for option, place in _ON_PAGES.items():
        sentence = sentence.replace(option, place)
    return _ASIDE.sub("", sentence)


def marked_prompt(text: str, span: tuple[int, int] | None) -> str:
    """The prompt with the characters of `span` marked."""
    if span is None:
        return escape(text)
    start, end = span
    inside = f'<mark style="{_MARK};color:inherit" title="subject">{escape(text[start:end])}</mark>'
    return escape(text[:start]) + inside + escape(text[end:])


def head(prompt_html: str, true: str, foil: str, first_token: bool) -> str:
    """The head's sentence: prompt, true object, foil."""
    first = " <span style='opacity:.65'>(first tokens)</span>" if first_token else ""
    pill = "border-radius:1em;padding:.1em .6em;white-space:nowrap"
    return (
        f'<div style="font-size:1.3rem;line-height:1.7;overflow-wrap:anywhere">{prompt_html} '
        f'<span style="opacity:.65">→</span> '
        f'<span style="{pill};background:rgba(33,102,172,.22)" title="true object"><b>{escape(true)}</b></span> '
        f'<span style="opacity:.65;font-size:1rem">against</span> '
        f'<span style="{pill};background:rgba(178,96,10,.2)" title="foil">{escape(foil)}</span>{first}</div>'
    )


def tokens_row(tokens: Sequence[tuple[str, bool, bool]]) -> str:
    """Tokens as chips: (piece, belongs to the subject, special)."""
    chips = []
    for pos, (piece, subject, special) in enumerate(tokens):
        style = "border:1px solid rgba(128,128,128,.35);border-radius:5px;padding:.05em .35em;font-size:.85rem"
        if subject:
            style += ";background:rgba(33,102,172,.25);font-weight:600"
        if special:
            style += ";opacity:.7;font-style:italic"
        title = f"position {pos}" + (", subject" if subject else "") + (", special token" if special else "")
        chips.append(f'<span style="{style}" title="{title}">{escape(visible(piece))}</span>')
    return f'<div style="display:flex;flex-wrap:wrap;gap:.25rem">{"".join(chips)}</div>'


def next_tokens(title: str, rows: Sequence[tuple[str, float]], *, true: str, foil: str) -> str:
    """A small bar list of next tokens with probabilities; the true object and the foil are named."""
    lines = []
    for token, p in rows:
        role = "true" if token == true else "foil" if token == foil else ""
        color = {"true": "rgba(33,102,172,.45)", "foil": "rgba(178,96,10,.4)"}.get(role, "rgba(128,128,128,.28)")
        note = f' <span style="opacity:.65;font-size:.75rem">{role}</span>' if role else ""
        lines.append(
            '<div style="display:flex;align-items:center;gap:.5rem;font-size:.9rem;line-height:1.55">'
            f'<span style="flex:0 0 42%;overflow:hidden;text-overflow:ellipsis;white-space:nowrap">'
            f"{escape(visible(token))}{note}</span>"
            f'<span style="flex:1;min-width:2rem"><span style="display:block;height:.75em;border-radius:3px;'
            f'min-width:2px;width:{max(100 * p, 0):.1f}%;background:{color}"></span></span>'
            '<span style="flex:0 0 3.6rem;text-align:right;font-variant-numeric:tabular-nums">'
            f"{escape(probability(p))}</span></div>"
        )
    return (
        f'<div style="font-size:.85rem;opacity:.7;margin-bottom:.2rem">{escape(title)}</div>{"".join(lines)}'
        if lines
        else ""
    )


def prompts_table(rows: Sequence[tuple[str, str, str, str, str, str]]) -> str:
    """Prompts with one token marked: (before, token, after, value, where, address of a link or empty)."""
    table = "width:100%;border-collapse:collapse;font-size:.9rem;line-height:1.5"
    cell = "padding:.25em .5em .25em 0"
    lines = []
    for before, token, after, value, where, address in rows:
        if token.strip():  # the blank before a word is not marked
            before, token = before + token[: len(token) - len(token.lstrip())], token.lstrip()
        marked = f'<mark style="{_MARK};color:inherit;white-space:pre-wrap">{escape(token)}</mark>'
        link = f'<a href="{escape(address)}" target="_blank" style="color:inherit">open</a>' if address else ""
        lines.append(
            '<tr style="border-top:1px solid rgba(128,128,128,.25)">'
            f'<td style="{cell};overflow-wrap:anywhere">{escape(before)}{marked}{escape(after)}</td>'
            f'<td style="{cell};opacity:.7;white-space:nowrap">{escape(where)}</td>'
            f'<td style="{cell};font-variant-numeric:tabular-nums">{escape(value)}</td>'
            f'<td style="{cell}">{link}</td></tr>'
        )
    return f'<table style="{table}">{"".join(lines)}</table>'


def continuation(prompt: str, more: str) -> str:
    """A prompt and what a model goes on with, which is marked."""
    style = "font-size:.95rem;line-height:1.6;overflow-wrap:anywhere;white-space:pre-wrap"
    return f'<div style="{style}">{escape(prompt)}<mark style="{_MARK};color:inherit">{escape(more)}</mark></div>'


def object_token(role: str, token: str, token_id: int, note: str) -> str:
    """One line that names an object's token."""
    return (
        f'<div style="font-size:.85rem"><span style="opacity:.65">{escape(role)} object is token</span> '
        f'<b>{escape(visible(token))}</b> <span style="opacity:.65">#{token_id}{escape(note)}</span></div>'
    )


def pairs(rows: Sequence[tuple[str, ...]]) -> str:
    """Names and values, one pair a line; a third element is shown when the pointer rests on the line."""
    lines = "".join(
        f'<div style="display:flex;gap:.75rem" title="{escape(" ".join(more))}">'
        f'<span style="flex:0 0 6.8rem;opacity:.65">{escape(name)}</span>'
        f'<span style="overflow-wrap:anywhere">{escape(value)}</span></div>'
        for name, value, *more in rows
    )
    return f'<div style="font-size:.9rem;line-height:1.55">{lines}</div>'


def verdict(label: str, sentences: Sequence[str], cautions: Sequence[str]) -> str:
    """A study's verdict: the label, the sentences that say why, what weakens them."""
    items = "".join(f"<li>{escape(line)}</li>" for line in sentences)
    items += "".join(f'<li style="color:{_CAUTION}"><b>Caution:</b> {escape(line)}</li>' for line in cautions)
    return (
        f'<div style="border-left:4px solid #3f83c4;padding:.1rem 0 .1rem 1rem;max-width:70rem">'
        f'<div style="font-size:1.3rem;font-weight:650">Verdict: {escape(label)}</div>'
        f'<ul style="margin:.4rem 0 0;padding-left:1.2rem;line-height:1.55">{items}</ul></div>'
    )


def findings(sentences: Sequence[str]) -> str:
    """Sentences that say what was found, the first one standing out."""
    first, *others = sentences
    more = "".join(f"<li>{escape(line)}</li>" for line in others)
    return (
        '<div style="border-left:4px solid #3f83c4;padding:.1rem 0 .1rem 1rem;max-width:70rem;overflow-wrap:anywhere">'
        f'<div style="font-size:1.1rem;font-weight:600">{escape(first)}</div>'
        f'<ul style="margin:.4rem 0 0;padding-left:1.2rem;line-height:1.55">{more}</ul></div>'
    )


def cards(values: Sequence[tuple[str, str, str, str]]) -> str:
    """Numbers side by side: (name, value, what stands below it, what is shown when the pointer rests on it)."""
    boxes = "".join(
        f'<div style="border:1px solid rgba(128,128,128,.3);border-radius:8px;padding:.45rem .75rem" '
        f'title="{escape(title)}"><div style="font-size:.85rem;opacity:.7">{escape(name)}</div>'
        f'<div style="font-size:1.35rem;line-height:1.4;font-variant-numeric:tabular-nums">{escape(value)}</div>'
        f'<div style="font-size:.85rem;opacity:.75;font-variant-numeric:tabular-nums">{escape(below)}</div></div>'
        for name, value, below, title in values
    )
    columns = "grid-template-columns:repeat(auto-fit,minmax(max(13.4rem,30%),1fr))"
    return f'<div style="display:grid;{columns};gap:.6rem">{boxes}</div>'


def stages(steps: Sequence[tuple[str, str]]) -> str:
    """The steps of long work: (name, `done`, `now` or `later`)."""
    look = {
        "done": ("background:rgba(33,102,172,.22)", "✓ "),
        "now": ("background:rgba(33,102,172,.55);font-weight:600", ""),
        "later": ("opacity:.65;border:1px dashed rgba(128,128,128,.6)", ""),
    }
    chips = " ".join(
        f'<span style="{look[state][0]};border-radius:1em;padding:.1em .8em;white-space:nowrap" title="{state}">'
        f"{look[state][1]}{escape(name)}</span>"
        for name, state in steps
    )
    return f'<div style="display:flex;flex-wrap:wrap;gap:.4rem;font-size:.9rem;line-height:1.7">{chips}</div>'


def funnel(steps: Sequence[tuple[str, int, bool]], largest: int) -> str:
    """Counts as bars: (what, how many, whether they stayed); the longest bar is `largest`."""
    lines = []
    for what, count, stayed in steps:
        color = "rgba(33,102,172,.5)" if stayed else "rgba(178,96,10,.45)"
        width = 100 * count / largest if largest else 0
        lines.append(
            '<div style="display:flex;align-items:center;gap:.6rem;font-size:.9rem;line-height:1.6">'
            f'<span style="flex:0 0 46%">{escape(what)}</span>'
            f'<span style="flex:1"><span style="display:block;height:.8em;border-radius:3px;width:{width:.2f}%;'
            f'background:{color}"></span></span>'
            '<span style="flex:0 0 3.5rem;text-align:right;font-variant-numeric:tabular-nums">'
            f"{counted(count)}</span></div>"
        )
    return f"<div>{''.join(lines)}</div>"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], titles: Sequence[str] = ()) -> str:
    """A small table: the first column names the row, the others are right-aligned numbers or words. `titles`: what is
    shown when the pointer rests on a row."""
    cell = "padding:.15rem .9rem .15rem 0;border-bottom:1px solid rgba(128,128,128,.25)"
    head = "".join(
        f'<th style="{cell};text-align:{"right" if i else "left"};font-weight:600">{escape(name)}</th>'
        for i, name in enumerate(headings)
    )
    lines = []
    for number, row in enumerate(rows):
        title = f' title="{escape(titles[number])}"' if number < len(titles) and titles[number] else ""
        cells = "".join(
            f'<td style="{cell};{"text-align:right;font-variant-numeric:tabular-nums" if i else "opacity:.75"}">'
            f"{escape(value)}</td>"
            for i, value in enumerate(row)
        )
        lines.append(f"<tr{title}>{cells}</tr>")
    return (
        '<div style="overflow-x:auto"><table style="border-collapse:collapse;font-size:.9rem">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )
