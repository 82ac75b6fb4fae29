"""TransformerLens: its bridge over the Hugging Face model, one `run_with_hooks` per cell, as in its patching module."""

from __future__ import annotations

import tempfile

import torch

from ..case import OBJECTS, SUBJECT, Case
from .method import HeatMap, Method


def _prepare(case: Case) -> HeatMap:
    from transformer_lens.model_bridge import TransformerBridge

    with tempfile.TemporaryDirectory() as folder:  # the bridge loads its tokenizer again, by name
        case.tokenizer.save_pretrained(folder)
        model = TransformerBridge.boot_transformers(
            folder, hf_model=case.own_model(), tokenizer=type(case.tokenizer).from_pretrained(folder), device="cpu"
        )
    names = [f"blocks.{layer}.mlp.hook_out" for layer in range(len(case.model.model.layers))]

    @torch.no_grad()
    def heat_map() -> torch.Tensor:
        _, cache = model.run_with_cache(case.ids, names_filter=names)
        cells = []
        for noise in case.noise:

            def corrupt(value, hook, noise=noise):  # noqa: ANN001, ANN202
                value[:, list(SUBJECT)] += noise
                return value

            for name in names:
                for pos in case.positions:

                    def restore(value, hook, name=name, pos=pos):  # noqa: ANN001, ANN202
                        value[:, pos] = cache[name][:, pos]
                        return value

                    logits = model.run_with_hooks(
                        case.ids, return_type="logits", logits_to_keep=1,
                        fwd_hooks=[("embed.hook_out", corrupt), (name, restore)],
                    )  # fmt: skip
                    cells.append(logits[0, -1, list(OBJECTS)])
        return torch.stack(cells).view(case.draws, len(names), len(case.positions), 2)

    return heat_map


CELLS = Method(
    key="transformer_lens",
    name="TransformerLens",
    per_cell="one `run_with_hooks` of the bridge with a hook on `blocks.L.mlp.hook_out`",
    prepare=_prepare,
    role="library",
    package="transformer-lens",
)
