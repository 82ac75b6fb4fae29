"""The demo tokenizer: a byte-level BPE in which every object and every word of our templates is one token.

BPE merges the most frequent pairs first.  The words that must be single tokens are therefore counted ``WEIGHT``
times, the subjects once: all words are complete before the first merge that only subjects ask for, and subjects
come out in several pieces unless they are such a word themselves.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from factlist import FACTS, Fact, load_facts
from templates import PREFIXES, TEMPLATES
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END = "<|endoftext|>"
WEIGHT = 1000
#: Merges beyond the whole words; they go to the subjects.
SUBJECT_MERGES = 1000


def template_words() -> set[str]:
    """Every word of the templates and prefixes, also in lower case (after a prefix, statements start so)."""
    texts = [t for relation in TEMPLATES.values() for t in relation.trained + relation.unseen] + list(PREFIXES)
    words = {word for text in texts for word in re.findall(r"[^\s,:;.?!{}]+", text)}
    return words | {word[0].lower() + word[1:] for word in words}


def _train(words: list[str], subjects: list[str], size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=2,
        show_progress=False,
    )
    corpus = [" " + w for w in words for _ in range(WEIGHT)] + [" " + s for s in subjects]
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def build_tokenizer(facts: list[Fact], subject_merges: int = SUBJECT_MERGES) -> PreTrainedTokenizerFast:
    """Train the tokenizer; no special token is ever added to a text."""
    words = sorted({f.true for f in facts} | {f.foil for f in facts} | template_words())
    subjects = sorted({f.subject for f in facts})
    needed = _train(words, [], 10**6).get_vocab_size()  # everything that the whole words take
    tokenizer = _train(words, subjects, needed + subject_merges)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END,
        model_max_length=128,
        clean_up_tokenization_spaces=False,
    )
    split = [w for w in words if len(tokenizer(" " + w)["input_ids"]) != 1]
    if split:
        raise ValueError(f"not single tokens: {split[:10]}")
    return tokenizer


if __name__ == "__main__":
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else FACTS
    bundled = load_facts(source)
    built = build_tokenizer(bundled)
    lengths = [len(built(" " + s)["input_ids"]) for s in sorted({f.subject for f in bundled})]
    print(
        f"vocabulary {len(built)}, {sum(lengths) / len(lengths):.2f} tokens a subject, "
        f"{sum(n == 1 for n in lengths) / len(lengths):.0%} of them single tokens"
    )
