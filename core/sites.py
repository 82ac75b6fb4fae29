"""Where a map may patch, and what a window of layers is: names and arithmetic, no model.

The sites of protocol.md: the MoE-block output, the attention sublayer's output, both sublayers' outputs, the residual
stream after the layer.
"""

from __future__ import annotations

MOE, ATTENTION, LAYER, RESIDUAL = SITES = ("moe", "attention", "layer", "residual")

NAMES = {
    MOE: "MoE output",
    ATTENTION: "attention",
    LAYER: "layer output",
    RESIDUAL: "residual",
}
"""Site → what a person calls it."""

MEANING = {
    MOE: "the MoE block's output there is put back to its clean value in the corrupt run",
    ATTENTION: "the attention sublayer's output there is put back to its clean value in the corrupt run",
    LAYER: "the outputs of attention and MoE block there are both put back to their clean values in the corrupt run",
    RESIDUAL: "the residual stream after the layer is put back there to its clean value in the corrupt run",
}


def map_name(site: str, window: int) -> str:
    """What a layer × token map patches, in a few words."""
    return NAMES[site] + (f", {window} layers at once" if window > 1 else "")


def window_around(layer: int, width: int, n_layers: int) -> range:
    """The layers of a window patch of `width` layers around `layer`, cut at the model's ends.

    As ROME's severed-window plots: from l − w // 2 on, so that a window of 10 has five layers below and four above.
    """
    first = layer - width // 2
    return range(max(0, first), min(n_layers, first + width))


def cell_meaning(site: str, window: int) -> str:
    """What one cell of the layer × token map patches, as a sentence."""
    if window == 1:
        return f"One cell per layer and token: {MEANING[site]}."
    below, above = window // 2, window - window // 2 - 1
    around = f"{below} layer{'s' if below != 1 else ''} below" + (f" to {above} above" if above else "")
    return f"One cell per layer and token: {MEANING[site]}, in a window of {window} layers at once ({around})."
