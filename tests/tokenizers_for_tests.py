"""Tokenizers of the kinds that matter, built on the spot, and an offset-free way to find the subject's tokens.

`prefix_space`: byte-level BPE that puts a space before the first word, no BOS (as the demo's). `no_prefix_space`:
byte-level BPE with NFC and no BOS (as Qwen's; GPT-2's but for NFC). `sentencepiece`: Mixtral's own model with BOS, as
its tokenizer.json describes it (normalizer), `metaspace`: the same as transformers 5 builds it from the model file.
"""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
import unicodedata
from pathlib import Path

import mistral_common
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

MIXTRAL_MODEL = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"
CORPUS = [
    "The capital of France is Paris. Rome, Madrid and Berlin are capitals too.",
    "Paris Rome Madrid Berlin Paris Rome Madrid Berlin London",
    "Is it Paris or Rome? Paris! The mother tongue of Marie Curie is Polish, not French.",
    "New York and New Delhi. The city of New York is in America. New Zealand too.",
    "(Paris) (Rome) (Berlin) (Madrid)",
    "A café is a café is a café.",
]
KINDS = ("prefix_space", "no_prefix_space", "sentencepiece", "metaspace")


@functools.cache
def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """One tokenizer of `KINDS`; do not change it."""
    if kind == "prefix_space":
        return byte_level(add_prefix_space=True)
    if kind == "no_prefix_space":
        return byte_level(add_prefix_space=False, nfc=True)
    if kind == "sentencepiece":
        return _mixtral()
    if kind == "metaspace":
        return _mixtral(metaspace=True)
    raise ValueError(kind)


def byte_level(
    *,
    add_prefix_space: bool,
    nfc: bool = False,
    use_regex: bool = True,
    trim_offsets: bool | None = None,
    **special: str,
) -> PreTrainedTokenizerFast:
    """A small byte-level BPE trained on `CORPUS`. `use_regex=False`: tokens may run across spaces."""
    raw = Tokenizer(models.BPE())
    if nfc:
        raw.normalizer = normalizers.NFC()
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=use_regex)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
        show_progress=False,
    )
    raw.train_from_iterator(CORPUS * 10, trainer)
    if trim_offsets is not None:
        raw.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|endoftext|>", **special)


def with_template(base: PreTrainedTokenizerFast, single: str, **special: str) -> PreTrainedTokenizerFast:
    """A copy of `base` that adds special tokens by a template such as `<s> $A </s>`."""
    raw = Tokenizer.from_str(base.backend_tokenizer.to_str())
    names = [part for part in single.split() if part != "$A"]
    raw.add_special_tokens(sorted({*names, *special.values()}))
    raw.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(name, raw.token_to_id(name)) for name in names]
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, **special)


def _mixtral(*, metaspace: bool = False) -> PreTrainedTokenizerFast:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(MIXTRAL_MODEL, Path(folder) / "tokenizer.model")
        built = LlamaTokenizer.from_pretrained(folder)
    description = json.loads(built.backend_tokenizer.to_str())
    if not metaspace:
        description["pre_tokenizer"] = None
        description["normalizer"] = {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        }
    raw = Tokenizer.from_str(json.dumps(description))
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def subject_by_bytes(tok: PreTrainedTokenizerFast, ids: list[int], text: str, start: int, end: int) -> list[int]:
    """Positions of the tokens that hold a byte of `text[start:end]`, found without offsets.

    Every token is turned into the bytes it stands for; laid one after the other they must spell the text (after one
    dummy space, if the tokenizer puts one there), which says which bytes each token holds.
    """
    nfc = tok.backend_tokenizer.normalizer is not None and "NFC" in str(tok.backend_tokenizer.normalizer)
    normal = (lambda s: unicodedata.normalize("NFC", s)) if nfc else (lambda s: s)
    head, subject = normal(text[:start]).encode(), normal(text[start:end]).encode()
    pieces = [_bytes(tok, i) for i in ids]
    whole = b"".join(pieces)
    target = normal(text).encode()
    dummy = len(whole) - len(target)
    assert whole[dummy:] == target and whole[:dummy] in (b"", b" "), (whole, target)
    first, last = dummy + len(head), dummy + len(head) + len(subject)
    out, at = [], 0
    for position, piece in enumerate(pieces):
        if piece and at < last and at + len(piece) > first:
            out.append(position)
        at += len(piece)
    return out


def _bytes(tok: PreTrainedTokenizerFast, token_id: int) -> bytes:
    raw = tok.convert_ids_to_tokens(token_id)
    if raw in tok.all_special_tokens:
        return b""
    if tok.backend_tokenizer.decoder.__class__.__name__ == "ByteLevel":
        return bytes(_byte_of()[c] for c in raw)
    if len(raw) == 6 and raw.startswith("<0x"):
        return bytes([int(raw[3:5], 16)])
    return raw.replace("▁", " ").encode()


@functools.cache
def _byte_of() -> dict[str, int]:
    """The byte-level alphabet, found by asking the library what it makes of every byte that can be written."""
    found: dict[str, int] = {}
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for code in [*range(0x80), *range(0x80, 0x800), *range(0x800, 0x10000, 0x40), *range(0x10000, 0x110000, 0x1000)]:
        if 0xD800 <= code <= 0xDFFF:
            continue
        char = chr(code)
        for shown, byte in zip(level.pre_tokenize_str(char)[0][0], char.encode(), strict=True):
            assert found.setdefault(shown, byte) == byte
    return found
