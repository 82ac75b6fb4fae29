"""Every family that `tests.families` discovers: what the engine makes of it, held against `tests.naive`.

`python -m tests.matrix` writes what it finds to docs/families.md; a test checks that the committed file says the same.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import transformers

from core.checks import ensure_checked
from core.corruption import draw_noise, embedding_std
from core.errors import ModelRefused
from core.moe import MoeModel
from core.structure import Structure
from core.trace import trace_prepared
from tests.compare import Agreement, compare, random_fact
from tests.families import build, discover
from tests.naive import Fact, Naive

TABLE = Path(__file__).resolve().parent.parent / "docs" / "families.md"
MEDIAN = 0.1  # of |rescue| over the cells: the unembedding is scaled until it is this large
LENGTH, SUBJECT, EXPERTS_AT = 8, (4, 5), (5, 7)
FACT = random_fact(5, length=LENGTH, subject=SUBJECT)


@dataclass(frozen=True)
class Finding:
    """What came out for one family. `refused`: why, if it was; `unrunnable`: what transformers itself failed with.

    `early`: largest difference of a cell from the corrupt run, left of where the two runs begin to differ.
    """

    kind: str
    model: str
    refused: str = ""
    unrunnable: str = ""
    structure: Structure | None = None
    agreement: Agreement | None = None
    early: float = 0.0
    sites: dict[str, bool] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """exact, exact but slower, refused, or that transformers cannot run it."""
        if self.unrunnable:
            return "not run by transformers"
        if self.refused:
            return "refused"
        assert self.structure is not None
        return "exact" if all(self.structure.packed) else "exact, slower"

    @property
    def path(self) -> str:
        """How the tiny model's layers are run."""
        if self.structure is None:
            return ""
        if self.structure.whole:
            return "forward passes of the whole model"
        slow = self.structure.packed.count(False)
        return "packed" if not slow else f"full rows in {slow} of {len(self.structure.packed)} layers"


def noise_for(model: torch.nn.Module) -> torch.Tensor:
    """The draw that `trace_prepared` makes for FACT, [n_subject, d]."""
    table = model.get_input_embeddings()
    return draw_noise(
        seed=7, case_id=FACT.fact.case_id, draws=1, n_subject=len(SUBJECT), hidden=table.weight.shape[-1],
        sigma=3.0 * embedding_std(table),
    )[0]  # fmt: skip


def fact_for(model: torch.nn.Module) -> Fact:
    """FACT as the naive way wants it."""
    return Fact(torch.tensor(FACT.input_ids), SUBJECT, (FACT.true_id, FACT.foil_id), noise_for(model))


@torch.no_grad()
def scaled(model: torch.nn.Module) -> torch.nn.Module:
    """The model with its unembedding scaled so that the median |rescue| of a cell is about `MEDIAN`."""
    naive = Naive(model, fact_for(model))
    true, foil = naive.forward(naive.fact.noise)
    rescues = [a - b - (true - foil) for a, b in naive.cells(range(SUBJECT[0], LENGTH)).values()]
    model.get_output_embeddings().weight.mul_(MEDIAN / float(np.median(np.abs(rescues))))
    return model


@functools.cache
def examine(kind: str) -> Finding:
    """Build the family's tiny model and `examine_model` it."""
    name = discover()[kind]
    try:
        model = build(kind)
        with torch.no_grad():
            model(input_ids=torch.tensor([FACT.input_ids]), use_cache=False)
    except Exception as error:  # noqa: BLE001 - whatever transformers fails with
        return Finding(kind, name, unrunnable=f"{type(error).__name__}: {error}")
    return examine_model(kind, name, model)


def examine_model(kind: str, name: str, model: torch.nn.Module) -> Finding:
    """Check a tiny model as any model is checked when it is loaded, trace it, compare."""
    naive = Naive(scaled(model), fact_for(model))
    first = naive.first_to_differ()
    wanted = naive.table(range(first, LENGTH), EXPERTS_AT)
    try:
        moe = MoeModel(model)
        ensure_checked(moe)
    except ModelRefused as error:
        return Finding(kind, name, refused=str(error))
    frame = trace_prepared(moe, [FACT], noise=3.0, draws=1, seed=7, experts=EXPERTS_AT)[0].frame
    agreement = compare(frame[frame.pos.isna() | (frame.pos >= first)], wanted, first_subject=SUBJECT[0])
    early = frame[(frame.pos < first).fillna(False)].rescue.abs().max() if first else 0.0
    sites = {"attention": any(moe.structure.attention), "reroute": moe.structure.reroutable}
    return Finding(kind, name, structure=moe.structure, agreement=agreement, early=float(early), sites=sites)


def table() -> str:
    """The generated page."""
    findings = [examine(kind) for kind in sorted(discover())]
    lines = [
        "# Model families",
        "",
        "Generated by `make families` (`python -m tests.matrix`); do not edit.",
        "",
        f"All sparse-MoE causal language models of transformers {transformers.__version__}, found by walking its Auto "
        "classes, each as a tiny random model whose layer patches and expert patches are compared with one hooked "
        "forward per patch.",
        "*exact*: equal within 1e-4 logits, and within 1e-4 of the range of the rescues. *exact, slower*: the same, "
        "but in some layers every patched row takes its whole prompt along, or every patched row is a forward pass of "
        "the whole model. *refused*: not traced, with the reason. Every model is checked again when it is loaded, "
        "whatever this table says.",
        "",
        "| family | class | verdict | how it runs | shared expert | attention patches | reroute |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]

    def said(yes: bool) -> str:
        return "yes" if yes else "no"

    for finding in findings:
        cells = [finding.kind, finding.model, finding.verdict, finding.path]
        if finding.structure is None:
            cells += ["", "", ""]
        else:
            cells += [said(finding.structure.has_shared), *map(said, finding.sites.values())]
        lines.append(f"| {' | '.join(cells)} |")
    reasons = [f"- {f.kind}: {f.refused or f.unrunnable}" for f in findings if f.refused or f.unrunnable]
    lines += ["", "## Why some are refused", "", *reasons] if reasons else []
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    TABLE.write_text(table(), "utf-8")
