"""From a fact to token ids: the prompt as the model gets it, the subject's tokens, the object tokens.

Works on any tokenizer of the `transformers` kind that reports character offsets. Knows the rules of protocol.md
("Quantities", "Protocol switches"), but neither models nor files, and never imports torch.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from .errors import InputError
from .requests import OBJECT_TOKENS, SPECIAL_TOKENS, Fact

Span = tuple[int, int]
_CONTEXT = 24  # characters shown on each side of an occurrence of the subject
_LISTED = 10  # occurrences shown


@dataclass(frozen=True)
class PreparedFact:
    """A fact as one tokenizer sees it.

    `input_ids`: what the model gets, special tokens included. `tokens`: the decoded piece of each id, for people.
    `spans`: character offsets of each token in `fact.text`, (0, 0) for special tokens. `subject_positions`: every
    token that overlaps the subject's characters, contiguous. `foil_id` is None only while `fact.foil_auto` waits
    for the clean run (then `foil_token` is empty). `replacements`: the subjects that stand in its place in the corrupt
    runs, where the corruption is that; `replaced_ids`: `input_ids` with each of them.
    """

    fact: Fact
    input_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    spans: tuple[Span, ...]
    subject_positions: tuple[int, ...]
    true_id: int
    foil_id: int | None
    true_token: str
    foil_token: str
    notes: tuple[str, ...] = ()
    replacements: tuple[str, ...] = ()
    replaced_ids: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class ObjectToken:
    """One object's token. `pieces` are all tokens of the object; `token_id` is the first one's id. `note` is set
    where that is not the whole object."""

    token_id: int
    token: str
    pieces: tuple[str, ...]
    note: str = ""


def prepare(
    tokenizer: Any,
    fact: Fact,
    *,
    special_tokens: str = "auto",
    object_tokens: str = "space",
    first_token: bool = False,
    max_length: int | None = None,
) -> PreparedFact:
    """Tokenise `fact`, find its subject and its object tokens.

    `special_tokens`: `auto` is the tokenizer's own default, `on` and `off` force them. `object_tokens`: see
    `object_token`. `first_token` accepts objects of several tokens and takes the first. `max_length`: the model's
    context in tokens. Raises `InputError` with `field` naming the part that is wrong.
    """
    start, end = subject_span(fact)
    check_objects(fact)
    ids, spans, _ = encode(tokenizer, fact.text, special_tokens=special_tokens)
    check_length(len(ids), max_length)
    tokens = tuple(piece(tokenizer, i) for i in ids)
    positions = subject_positions(fact.text, tokens, spans, start, end)
    options = {"special_tokens": special_tokens, "object_tokens": object_tokens, "first_token": first_token}
    true = object_token(tokenizer, fact.text, fact.true, role="true", **options)
    foil = None if fact.foil_auto else object_token(tokenizer, fact.text, fact.foil, role="foil", **options)
    check_distinct(fact, true, foil)
    notes = [o.note for o in (true, foil) if o and o.note] + _notes(fact)
    return PreparedFact(
        fact=fact,
        input_ids=ids,
        tokens=tokens,
        spans=spans,
        subject_positions=positions,
        true_id=true.token_id,
        foil_id=foil.token_id if foil else None,
        true_token=true.token,
        foil_token=foil.token if foil else "",
        notes=tuple(notes),
    )


def with_foil(prepared: PreparedFact, tokenizer: Any, foil_id: int) -> PreparedFact:
    """`prepared` with the foil that was chosen from the clean run (`Fact.foil_auto`)."""
    if foil_id == prepared.true_id:
        raise InputError("The automatic foil is the true object's own token.", "Give a foil.", field="foil")
    token = piece(tokenizer, foil_id)
    note = f"the foil {token!r} is the model's most probable other token in the clean run"
    return dataclasses.replace(prepared, foil_id=int(foil_id), foil_token=token, notes=(*prepared.notes, note))


def subject_span(fact: Fact) -> Span:
    """Start and end of the subject in `fact.text`, white space at the subject's own ends left out.

    In a template the place is that of `{}`. In a whole text it is the only occurrence, or the one that
    `fact.occurrence` (1-based) names.
    """
    if not fact.prompt.strip():
        raise InputError("The prompt is empty.", 'Write one such as "The capital of {} is".', field="prompt")
    subject = fact.subject.strip()
    if not subject:
        raise InputError("The subject is empty.", "Name what the fact is about, such as France.", field="subject")
    slots = fact.prompt.count("{}")
    if slots > 1:
        raise InputError(
            f"The prompt has {slots} places {{}} for the subject.",
            "Keep one {} and write the other places out.",
            field="prompt",
        )
    _check_text(fact.text)
    if slots and fact.occurrence is None:
        start = fact.prompt.index("{}") + len(fact.subject) - len(fact.subject.lstrip())
        return start, start + len(subject)
    starts = _occurrences(fact.text, subject)
    if not starts:
        raise InputError(
            f"The subject {subject!r} is not in the prompt {fact.prompt!r}.",
            "Write {} where the subject belongs, or spell it as in the prompt (upper and lower case count).",
            field="subject",
        )
    if fact.occurrence is None and len(starts) > 1:
        raise InputError(
            f"The subject {subject!r} occurs {len(starts)} times in the prompt: {_listed(fact.text, subject, starts)}.",
            "Write {} in place of the one that is meant, or choose with `occurrence` "
            f"(--occurrence 1 to {len(starts)}).",
            field="occurrence",
        )
    number = 1 if fact.occurrence is None else fact.occurrence
    if not 1 <= number <= len(starts):
        raise InputError(
            f"Occurrence {number} of the subject {subject!r} was asked for, but it occurs {len(starts)} time"
            f"{'s' if len(starts) > 1 else ''} in the prompt: {_listed(fact.text, subject, starts)}.",
            f"Choose `occurrence` from 1 to {len(starts)}." if len(starts) > 1 else "Leave `occurrence` out.",
            field="occurrence",
        )
    return starts[number - 1], starts[number - 1] + len(subject)


def check_objects(fact: Fact) -> None:
    """Both objects are there (or the foil is to be automatic) and they differ."""
    if not fact.true.strip():
        raise InputError("The true object is empty.", "Give the word that completes the prompt.", field="true")
    if fact.foil_auto:
        return
    if fact.foil is None:
        raise InputError(
            "There is no foil, and no object of the same relation to take as one.",
            "Give a foil, or let the model's most probable other token be it: --foil auto.",
            field="foil",
        )
    if not fact.foil.strip():
        raise InputError("The foil is empty.", "Give another word that would fit, or --foil auto.", field="foil")
    if fact.true.strip() == fact.foil.strip():
        raise InputError(
            f"The true object and the foil are the same: {fact.true.strip()!r}.",
            "Give a foil that is another, wrong, object.",
            field="foil",
        )


def check_length(n_tokens: int, max_length: int | None) -> None:
    """The prompt fits the model's context."""
    if max_length is not None and n_tokens > max_length:
        raise InputError(
            f"The prompt has {n_tokens} tokens, the model's context only {max_length}.",
            "Shorten the prompt.",
            field="prompt",
        )


def check_distinct(fact: Fact, true: ObjectToken, foil: ObjectToken | None) -> None:
    """True and foil are told apart by their (first) tokens."""
    if foil is not None and true.token_id == foil.token_id:
        raise InputError(
            f"The true object {fact.true.strip()!r} and the foil {(fact.foil or '').strip()!r} share their first token "
            f"{true.token!r}, so the contrast would be 0.",
            "Give a foil that begins with another token.",
            field="foil",
        )


def encode(
    tokenizer: Any, text: str, *, special_tokens: str = "auto"
) -> tuple[tuple[int, ...], tuple[Span, ...], tuple[bool, ...]]:
    """(ids, spans, is_special) of `text` as the model gets it.

    Special tokens that the tokenizer adds at the *end* (EOS, SEP) are dropped: the last token is the last one of the
    prompt, whose logits are read. `on` puts a BOS in front where the tokenizer has one but does not add it.
    """
    if special_tokens not in SPECIAL_TOKENS:
        raise InputError(
            f"special tokens is {special_tokens!r}.",
            f"Choose one of: {', '.join(SPECIAL_TOKENS)}.",
            field="special_tokens",
        )
    _check_text(text)
    ids, spans, special = _raw(tokenizer, text, add_special_tokens=special_tokens != "off")
    while special and special[-1]:
        ids, spans, special = ids[:-1], spans[:-1], special[:-1]
    if not any(not s for s in special):
        raise InputError("The tokenizer makes no token of the prompt.", "Write another prompt.", field="prompt")
    if special_tokens == "on" and not special[0]:
        bos = getattr(tokenizer, "bos_token_id", None)
        if bos is None:
            raise InputError(
                "Special tokens are switched on, but this model's tokenizer adds none and has no BOS token.",
                "Set special tokens to auto or off.",
                field="special_tokens",
            )
        ids, spans, special = (int(bos), *ids), ((0, 0), *spans), (True, *special)
    return ids, spans, special


def subject_positions(
    text: str, tokens: tuple[str, ...], spans: tuple[Span, ...], start: int, end: int
) -> tuple[int, ...]:
    """Positions of the tokens that overlap `text[start:end]`, first to last without a gap.

    A piece of white space alone counts only if the text has white space there: the dummy prefix that SentencePiece
    puts before the first word claims that word's first character, but holds none of it.
    """
    hit = []
    for pos, (token, (a, b)) in enumerate(zip(tokens, spans, strict=True)):
        overlap = text[max(a, start) : min(b, end)]
        if overlap and (token.strip() or not overlap.strip()):
            hit.append(pos)
    if not hit:
        raise InputError(
            f"No token of the prompt belongs to the subject {text[start:end]!r}: the tokenizer drops these characters.",
            "Spell the subject otherwise.",
            field="subject",
        )
    return tuple(range(hit[0], hit[-1] + 1))


def object_token(
    tokenizer: Any,
    text: str,
    obj: str,
    *,
    role: str = "true",
    special_tokens: str = "auto",
    object_tokens: str = "space",
    first_token: bool = False,
) -> ObjectToken:
    """The token that stands for the object `obj` after the prompt `text` (protocol.md, "Object-token rule").

    `space`: the continuation, the token the model would really emit: `text + " " + obj` is tokenised, the prompt's own
    tokens have to stay the same, and the object has to be the one token after them. `paper`: the bare object where
    that is a single token, else as `space`. `role` (true, foil) is for messages.
    """
    if object_tokens not in OBJECT_TOKENS:
        raise InputError(
            f"object tokens is {object_tokens!r}.", f"Choose one of: {', '.join(OBJECT_TOKENS)}.", field="object_tokens"
        )
    name = "true object" if role == "true" else "foil"
    obj = obj.strip()
    _check_text(obj, field=role)
    if object_tokens == "paper":
        bare, _, _ = _raw(tokenizer, obj, add_special_tokens=False)
        if len(bare) == 1:
            return _checked_object(tokenizer, bare, name, obj, role, first_token)
    if text != text.rstrip():
        raise InputError(
            "The prompt ends in white space, but the object's token brings its own space along.",
            "Remove the white space at the end of the prompt.",
            field="prompt",
        )
    prompt_ids, _, _ = encode(tokenizer, text, special_tokens=special_tokens)
    full_ids, _, _ = encode(tokenizer, f"{text} {obj}", special_tokens=special_tokens)
    if full_ids[: len(prompt_ids)] != prompt_ids:
        changed = next((i for i, (a, b) in enumerate(zip(prompt_ids, full_ids, strict=False)) if a != b), len(full_ids))
        was = "".join(piece(tokenizer, i) for i in prompt_ids[changed:])
        becomes = "".join(piece(tokenizer, i) for i in full_ids[changed:])
        raise InputError(
            f"The prompt's own tokens change when the {name} {obj!r} is put after it: {was!r} becomes {becomes!r}.",
            "End the prompt with a whole word, or choose the object-token rule `paper`.",
            field="prompt",
        )
    return _checked_object(tokenizer, full_ids[len(prompt_ids) :], name, obj, role, first_token)


def piece(tokenizer: Any, token_id: int) -> str:
    """The text of one token, its leading space kept. Bytes that are no character of their own: `<0xF0><0x9F>`."""
    raw = tokenizer.convert_ids_to_tokens(int(token_id))
    if raw is None:
        return f"<id {int(token_id)}>"
    if "▁" in raw:  # SentencePiece writes a space as U+2581, and its decoder would strip it
        return raw.replace("▁", " ")
    if raw in (getattr(tokenizer, "all_special_tokens", None) or ()):
        return raw
    text = tokenizer.decode([int(token_id)], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if "\ufffd" not in text and text:
        return text
    table = _byte_level_table()
    if raw and all(c in table for c in raw):
        return "".join(f"<0x{table[c]:02X}>" for c in raw)
    return raw


def _checked_object(
    tokenizer: Any, ids: tuple[int, ...], name: str, obj: str, role: str, first_token: bool
) -> ObjectToken:
    """The object token out of the object's ids, or why there is none."""
    pieces = tuple(piece(tokenizer, i) for i in ids)
    if not ids:
        raise InputError(f"The tokenizer makes no token of the {name} {obj!r}.", "Choose another.", field=role)
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is not None and unknown in ids and obj != getattr(tokenizer, "unk_token", None):
        raise InputError(f"The {name} {obj!r} is not in the tokenizer's vocabulary.", "Choose another.", field=role)
    if len(ids) == 1:
        return ObjectToken(ids[0], pieces[0], pieces)
    shown = " + ".join(repr(p) for p in pieces)
    if not pieces[0].strip():
        raise InputError(
            f"The {name} {obj!r} is {len(ids)} tokens, {shown}, and the first holds only white space.",
            "Choose an object of a single token, or the object-token rule `paper`.",
            field=role,
        )
    if not first_token:
        raise InputError(
            f"The {name} {obj!r} is {len(ids)} tokens: {shown}. The contrast compares single tokens.",
            f"Choose an object of a single token, or let the first one, {pieces[0]!r}, stand for it (Tokens, in the "
            "sidebar; on the command line --first-token; in a link first_token=1).",
            field=role,
        )
    note = f"{name} {obj!r} ({len(ids)} tokens: {shown}) is represented by its first token {pieces[0]!r}"
    return ObjectToken(ids[0], pieces[0], pieces, note)


def _raw(
    tokenizer: Any, text: str, *, add_special_tokens: bool
) -> tuple[tuple[int, ...], tuple[Span, ...], tuple[bool, ...]]:
    """(ids, spans, is_special) straight from the tokenizer; special means added by it, not typed in the text."""
    if not getattr(tokenizer, "is_fast", False):
        raise _no_offsets()
    try:
        out = tokenizer(
            text,
            add_special_tokens=add_special_tokens,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            truncation=False,
            padding=False,
            verbose=False,
        )
    except NotImplementedError:
        raise _no_offsets() from None
    special = tuple(bool(m) for m in out["special_tokens_mask"])
    spans = tuple((0, 0) if s else (int(a), int(b)) for (a, b), s in zip(out["offset_mapping"], special, strict=True))
    return tuple(int(i) for i in out["input_ids"]), spans, special


def _no_offsets() -> InputError:
    return InputError(
        "This model's tokenizer gives no character offsets, so the subject's tokens cannot be found.",
        "Use a checkpoint with a fast tokenizer (a tokenizer.json file).",
        field="model",
    )


def _check_text(text: str, field: str = "prompt") -> None:
    """Half of a surrogate pair is no character; tokenizers fail on it without saying where."""
    for at, char in enumerate(text):
        if 0xD800 <= ord(char) <= 0xDFFF:
            raise InputError(
                f"Character {at + 1} of {text[:at]!r}… is half of a surrogate pair, not a character.",
                "The text was damaged on its way here (a wrong encoding): type it again.",
                field=field,
            )


def _occurrences(text: str, subject: str) -> list[int]:
    starts, at = [], text.find(subject)
    while at >= 0:
        starts.append(at)
        at = text.find(subject, at + 1)
    return starts


def _listed(text: str, subject: str, starts: list[int]) -> str:
    """1: "…before [subject] after…"; 2: …"""
    shown = []
    for number, at in enumerate(starts[:_LISTED], 1):
        end = at + len(subject)
        before, after = text[max(0, at - _CONTEXT) : at], text[end : end + _CONTEXT]
        left = "…" if at > _CONTEXT else ""
        right = "…" if end + _CONTEXT < len(text) else ""
        shown.append(f'{number}: "{left}{before}[{subject}]{after}{right}"')
    return "; ".join(shown) + (f"; and {len(starts) - _LISTED:,} more" if len(starts) > _LISTED else "")


def _notes(fact: Fact) -> list[str]:
    """What protocol.md asks of a fact but what does not stop a trace."""
    notes = []
    for name, obj in (("true object", fact.true), ("foil", fact.foil)):
        if obj and not (name == "foil" and fact.foil_auto) and obj.strip() in fact.text:
            notes.append(f"the {name} {obj.strip()!r} stands in the prompt itself")
    return notes


def _byte_level_table() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes: printable Latin-1 as itself, the others from U+0100 upwards."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {chr(b): b for b in printable}
    others = (b for b in range(256) if b not in set(printable))
    table.update({chr(256 + n): b for n, b in enumerate(others)})
    return table
