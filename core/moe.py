"""A transformers MoE model as the engine sees it: layers, MoE blocks, experts, found by structure.

No family is named here (the exceptions are declared in `families`). A MoE block is a module with a child `experts`
whose forward takes hidden states, routed indices and routed weights; the layer list is the `ModuleList` around the
blocks. What the experts receive is what the block really multiplies with, whatever the router looks like.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .corruption import embedding_std
from .errors import ModelRefused
from .families import Block, block_at, exception_for
from .hooks import TopKWatch, hooks
from .identity import identity_of
from .prompts import piece
from .requests import ModelSpec

if TYPE_CHECKING:
    from .conversion import StoredWeights
    from .noise_floor import NoiseFloor
    from .structure import Structure


@dataclass
class Routing:
    """What one call of a block did with N tokens.

    `x`: what the experts received [N, d_in]; `index`: routed experts [N, k]; `weight`: router weights g [N, k];
    `y`: block output [N, d]; `scores`/`k`: the tensor top-k selected from [N, n_experts] where there was one.
    `block_args`: the block's own input, for families that transform the experts' output afterwards.
    """

    x: torch.Tensor
    index: torch.Tensor
    weight: torch.Tensor
    y: torch.Tensor
    scores: torch.Tensor | None
    k: int
    block_input: torch.Tensor


class MoeModel:
    """An unmodified transformers causal LM with what the engine needs to know about it.

    `layers`: the decoder layers; `blocks`: {layer index: Block}; `n_experts`; `lock` is held by whoever runs the
    model (hooks and the attention function are seen by every caller). `spec`: how it was asked for; `fingerprint`:
    of its files (a model made in memory has a fresh one); `weights`: where the layers' weights are if they stay on the
    disk; `remark`: what a person should know about that. Raises `ModelRefused` where no MoE block can be found or
    the blocks cannot be read.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any = None, *, spec: ModelSpec | None = None, fingerprint: str = ""
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.spec = spec or ModelSpec(name=type(model).__name__)
        self.fingerprint = fingerprint or f"in-memory-{uuid.uuid4().hex}"
        self.quantisation = ""
        self.weights: StoredWeights | None = None
        self.remark = ""
        self.lock = threading.RLock()
        self._structure: Structure | None = None
        self._noise_floor: NoiseFloor | None = None
        self.layers, self.blocks = find_blocks(model)
        self.config = model.config.get_text_config()
        self.embedding = model.get_input_embeddings()
        self.unembedding = model.get_output_embeddings()
        if self.unembedding is None:
            raise ModelRefused("The model has no unembedding (lm_head).", "Choose a causal language model.")
        first = next(iter(self.blocks.values()))
        self.n_experts = expert_count(first.experts, self.config)
        self.hidden = int(getattr(self.config, "hidden_size", None) or self.embedding.weight.shape[-1])
        # read once: while a sweep runs, the shared configuration names the sweep's own attention function
        self._implementation = {
            "attention": str(getattr(self.config, "_attn_implementation", None)),
            "experts": str(getattr(self.config, "_experts_implementation", None)),
        }
        self.max_length = getattr(self.config, "max_position_embeddings", None)

    @property
    def structure(self) -> Structure:
        """How the layers may be run: probed on first use (one pass over the weights) unless set from a verdict."""
        if self._structure is None:
            from .probing import probe

            self._structure = probe(self)
        return self._structure

    @property
    def whole(self) -> bool:
        """Known to be traced by forward passes of the whole model (see `core.whole`)."""
        return self._structure is not None and self._structure.whole

    @structure.setter
    def structure(self, structure: Structure) -> None:
        self._structure = structure

    @property
    def noise_floor(self) -> NoiseFloor:
        """How far rounding moves a rescue: measured on first use (one pass over the weights) unless set before."""
        if self._noise_floor is None:
            from .noise_floor import measure

            self._noise_floor = measure(self)
        return self._noise_floor

    @noise_floor.setter
    def noise_floor(self, noise_floor: NoiseFloor) -> None:
        self._noise_floor = noise_floor

    @property
    def vocabulary(self) -> int:
        """Rows of the input-embedding table: token ids from 0 to this, exclusive, can be embedded."""
        return int(self.embedding.weight.shape[0])

    @functools.cached_property
    def embedding_std(self) -> float:
        """Std of the input-embedding table (see `core.corruption.embedding_std`)."""
        return embedding_std(self.embedding)

    @functools.cached_property
    def identity(self) -> str:
        """Which weights, run how (see `core.identity`)."""
        return identity_of(
            fingerprint=self.fingerprint, dtype=str(self.dtype).removeprefix("torch."), device=self.device.type,
            implementation=self.implementation(), quantisation=self.quantisation,
        )  # fmt: skip

    @property
    def label(self) -> str:
        """Name and fingerprint, by which the store is shown and cleared."""
        return f"{self.spec.name} · {self.fingerprint[:8]}"

    @property
    def top_k(self) -> int:
        """Routed experts per token."""
        return self.structure.top_k

    def piece(self, token_id: int) -> str:
        """The decoded piece of a token, for people."""
        return str(token_id) if self.tokenizer is None else piece(self.tokenizer, token_id)

    @property
    def n_layers(self) -> int:
        """Number of decoder layers, dense ones included."""
        return len(self.layers)

    @property
    def moe_layers(self) -> list[int]:
        """Indices of the decoder layers that hold a MoE block."""
        return sorted(self.blocks)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the embeddings, hence of the residual stream."""
        return self.embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the embeddings are when they are used; inputs go there."""
        device = self.embedding.weight.device
        if device.type == "meta":  # accelerate brings them to where they are used
            device = getattr(getattr(self.embedding, "_hf_hook", None), "execution_device", None) or "cpu"
        return torch.device(device)

    @property
    def bytes_read(self) -> int:
        """Bytes read of weights that stay on the disk, since the model was loaded."""
        return 0 if self.weights is None else self.weights.checkpoint.total_read

    def implementation(self) -> dict[str, str]:
        """The attention and experts implementation that the model runs with."""
        return dict(self._implementation)


def find_blocks(model: nn.Module) -> tuple[nn.ModuleList, dict[int, Block]]:
    """The decoder layers and their MoE blocks: ({layer: Block} keyed by index in the enclosing ModuleList)."""
    modules = dict(model.named_modules())
    stacks: dict[str, dict[int, Block]] = {}
    unsupported = ""
    for name, module in modules.items():
        experts = getattr(module, "experts", None)
        if exception_for(module) is None:
            if not isinstance(experts, nn.Module):
                continue
            if len(inspect.signature(type(experts).forward).parameters) < 4:  # self, hidden, index, weights
                unsupported = type(module).__name__
                continue
        stack, index = _enclosing_list(name, modules)
        if stack is not None:
            stacks.setdefault(stack, {})[index] = block_at(index, module, modules[f"{stack}.{index}"])
    if not stacks:
        if unsupported:
            raise ModelRefused(
                f"The MoE block {unsupported} hides what its router decides.",
                "Its experts do not take (hidden states, indices, weights); this family is not supported.",
            )
        raise ModelRefused(
            f"{type(model).__name__} is not a sparse mixture-of-experts model: no layer has routed experts.",
            "Choose a MoE model, for example one of `python -m core models`.",
        )
    main = max(stacks, key=lambda stack: len(stacks[stack]))
    return modules[main], stacks[main]


def _enclosing_list(name: str, modules: dict[str, nn.Module]) -> tuple[str | None, int]:
    """The outermost ModuleList that contains module `name`, and the index of its branch in it."""
    parts = name.split(".")
    for i, part in enumerate(parts):
        parent = ".".join(parts[:i])
        if part.isdigit() and isinstance(modules.get(parent), nn.ModuleList):
            return parent, int(part)
    return None, -1


def expert_count(experts: nn.Module, config: Any) -> int:
    """How many routed experts a block has: the module says so, or its fused weights' first dimension."""
    for holder in (experts, config):
        for attribute in ("total_experts", "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"):
            value = getattr(holder, attribute, None)
            if isinstance(value, int) and value > 1:
                return value
    sizes = {p.shape[0] for p in experts.parameters(recurse=False) if p.ndim == 3}
    if len(sizes) == 1:
        return sizes.pop()
    raise ModelRefused("The number of routed experts cannot be read from the model.", "This family is not supported.")


class Watch:
    """Records one block's next call: use as a context manager round the call, then read `routing()`.

    Only for calls in which the block sees all its tokens at once, in order.
    """

    def __init__(self, block: Block, n_experts: int) -> None:
        self.block = block
        self.top_k = TopKWatch(n_experts)
        self._given: tuple[torch.Tensor, ...] = ()
        self._input: torch.Tensor | None = None
        self._output: torch.Tensor | None = None

    def __enter__(self) -> Watch:
        def routed(*given: torch.Tensor) -> None:
            self._given = given

        def put_out(y: torch.Tensor) -> None:
            self._output = y

        def block_called(module, args, kwargs):  # noqa: ANN001, ANN202 - a torch hook
            self._input = args[0] if args else next(v for v in kwargs.values() if torch.is_tensor(v))

        def router_called(module, args):  # noqa: ANN001, ANN202
            self._inside.enter_context(self.top_k)  # only here: it costs every operation a detour through Python

        def router_done(module, args, output):  # noqa: ANN001, ANN202
            self._inside.close()

        block = self.block
        self._stack = contextlib.ExitStack()
        self._inside = self._stack.enter_context(contextlib.ExitStack())
        self._stack.enter_context(
            hooks(
                *block.reading(put_out),
                block.module.register_forward_pre_hook(block_called, with_kwargs=True),
                block.router.register_forward_pre_hook(router_called),
                block.router.register_forward_hook(router_done),
                *block.pattern.listen(block, routed),  # behind the watch, which must not see what it does
            )
        )
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def routing(self) -> Routing:
        """What was seen. Raises `ModelRefused` if the block was not called as expected."""
        if not self._given or self._output is None or self._input is None:
            raise ModelRefused(
                f"The experts of layer {self.block.layer} were not called.", "This MoE block is not supported."
            )
        x, index, weight = self._given
        x, index = x.reshape(-1, x.shape[-1]), index.reshape(-1, index.shape[-1])
        weight = weight.reshape(index.shape[0], -1)
        if weight.shape != index.shape:
            raise ModelRefused(
                f"The experts of layer {self.block.layer} get weights of shape {tuple(weight.shape)} "
                f"for indices of shape {tuple(index.shape)}.",
                "This MoE block is not supported.",
            )
        y = self._output
        scores, k = None, index.shape[1]
        if self.top_k.calls:  # group-limited routers call top-k several times; the last one selects the experts
            scores, k = self.top_k.calls[-1]
            scores = scores.reshape(-1, scores.shape[-1])
            scores = scores if scores.shape[0] == index.shape[0] and k == index.shape[1] else None
        return Routing(
            x=x, index=index, weight=weight, y=y.reshape(-1, y.shape[-1]), scores=scores, k=k,
            block_input=self._input.reshape(-1, self._input.shape[-1]),
        )  # fmt: skip


def margins(scores: torch.Tensor | None, k: int, n: int) -> torch.Tensor:
    """Score of the k-th minus that of the (k+1)-th expert, [n], fp32; NaN where the router has no such scores."""
    if scores is None or scores.shape[-1] <= k:
        return torch.full((n,), float("nan"))
    top = scores.float().topk(k + 1, dim=-1).values
    return (top[:, k - 1] - top[:, k]).cpu()


def near_ties(scores: torch.Tensor | None, k: int, n: int) -> torch.Tensor:
    """True where the k-th and (k+1)-th score differ by at most one bfloat16 rounding step of the larger one, [n]."""
    if scores is None or scores.shape[-1] <= k:
        return torch.zeros(n, dtype=torch.bool)
    top = scores.float().topk(k + 1, dim=-1).values
    a, b = top[:, k - 1], top[:, k]
    return ((a - b) <= torch.maximum(a.abs(), b.abs()) * 2.0**-8).cpu()


@torch.no_grad()
def contributions(
    block: Block, x: torch.Tensor, index: torch.Tensor, weight: torch.Tensor, block_input: torch.Tensor | None = None
) -> torch.Tensor:
    """Expert contributions c = g · Expert(h) of N tokens, one per routed slot: [N, k, d], in block-output space.

    The experts run with one slot per row, so the module's own arithmetic (activation, clamping, biases, weights)
    is used. `block_input` is needed for families that transform the experts' output after the sum (a scale, a
    projection): there the block is run with its experts replaced by each slot's output, minus the block with
    zero experts. Those transformations must be linear; the load-time check Σ c + shared = y sees to it.
    """
    raw = block.pattern.run(block, x, index, weight).to(x.device)
    if block_input is None:
        return raw
    zero = without_experts(block, block_input)
    slots = []
    for j in range(index.shape[1]):
        with block.pattern.putting_out(block, raw[:, j]):
            slots.append(block.pattern.output(block, block_input) - zero)
    return torch.stack(slots, 1)


@torch.no_grad()
def without_experts(block: Block, block_input: torch.Tensor) -> torch.Tensor:
    """What the block puts out when its routed experts contribute nothing: the shared part, [N, d]."""
    with block.pattern.putting_out(block, None):
        return block.pattern.output(block, block_input).to(block_input.device)
