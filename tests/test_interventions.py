"""Every intervention of the sweep against plain hooked forwards, on several families; identities between them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import pytest
import tiny_models
import torch
from transformers import AutoModelForCausalLM

from core.base import Run
from core.catalog import DEMO_FOLDER
from core.moe import MoeModel
from core.patches import (
    CLEAN_TOP_K,
    ROUTING_UNION,
    SHARED,
    Masked,
    Nothing,
    Own,
    Patch,
    Step,
    Updates,
    Value,
    layer_patch,
)
from core.sweep import listed, sweep

N = 9
SUBJECT = (2, 3)
OBJECTS = (17, 33)
LAST = N - 1
ALL = tuple(range(N))
CLEAN, CORRUPT = 0, 1
FAMILIES = ["demo", "qwen3_moe", "qwen2_moe", "deepseek_v3", "granitemoe", "gpt_oss", "qwen3_next", "jamba"]
ATTENTION = ("self_attn", "linear_attn", "mamba")  # the names that these families give the sublayer
LIMIT = 1e-4


def demo() -> torch.nn.Module:
    """The bundled model as transformers loads it."""
    return AutoModelForCausalLM.from_pretrained(DEMO_FOLDER, dtype=torch.float32, local_files_only=True).eval()


class Bench:
    """One model with its two runs, and the naive way to ask anything.

    `prompt`: token ids, positions of the subject, noise [n_subject, d]; random ones if not given.
    """

    def __init__(self, family: str, prompt: tuple[list[int], tuple[int, ...], torch.Tensor] | None = None) -> None:
        self.module = demo() if family == "demo" else tiny_models.build(family)
        self.model = MoeModel(self.module)
        if prompt is None:
            ids = torch.randint(3, 200, (N,), generator=torch.Generator().manual_seed(1)).tolist()
            noise = torch.randn(len(SUBJECT), self.model.hidden, generator=torch.Generator().manual_seed(2))
            prompt = ids, SUBJECT, 3 * self.module.get_input_embeddings().weight.std().item() * noise
        ids, self.subject, self.noise = prompt
        self.ids, self.n = torch.tensor([ids]), len(ids)
        tokens = tuple(self.ids[0].tolist())
        self.runs = [Run(tokens), Run(tokens, self.noise, self.subject)]
        self.moe = self.model.moe_layers
        self.seen = [self.record(CLEAN), self.record(CORRUPT)]

    def sweep(self, *patches: Patch) -> torch.Tensor:
        attention = any(step.site == "attention" for patch in patches for step in patch.steps)
        outcome = sweep(
            self.model, self.model.structure, self.runs, listed(patches), objects=[OBJECTS] * 2, chunk_tokens=40,
            with_attention=attention,
        )  # fmt: skip
        order = [outcome.patches.index(patch) for patch in patches]
        return outcome.patched[order]

    def attention(self, layer: int) -> torch.nn.Module:
        module = self.model.layers[layer]
        return next(getattr(module, name) for name in ATTENTION if hasattr(module, name))

    def module_of(self, site: str, layer: int) -> torch.nn.Module:
        if site == "attention":
            return self.attention(layer)
        return self.model.blocks[layer].module if site == "moe" else self.model.layers[layer]

    @contextlib.contextmanager
    def noised(self, run: int) -> Iterator[None]:
        def add(module, args, output):  # noqa: ANN001, ANN202
            output = output.clone()
            output[0, list(self.subject)] += self.noise
            return output

        handles = [self.module.get_input_embeddings().register_forward_hook(add)] if run == CORRUPT else []
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def forward(
        self, run: int, *changes: tuple[torch.nn.Module, Callable, bool], tokens: Sequence[int] = OBJECTS
    ) -> torch.Tensor:
        """Logits of the tokens; each change is (module, hook, whether it is a pre-hook)."""
        handles = [
            module.register_forward_pre_hook(hook, with_kwargs=True) if before else module.register_forward_hook(hook)
            for module, hook, before in changes
        ]
        try:
            with torch.no_grad(), self.noised(run):
                return self.module(input_ids=self.ids_of(run), use_cache=False).logits[0, -1, list(tokens)]
        finally:
            for handle in handles:
                handle.remove()

    def ids_of(self, run: int) -> torch.Tensor:
        """What the model is given, [1, n]."""
        return self.ids

    def record(self, run: int) -> dict[tuple[str, int], torch.Tensor]:
        """{(site, layer): [n, d]} of one run."""
        out: dict[tuple[str, int], torch.Tensor] = {}

        def keep(site: str, layer: int) -> Callable:
            def hook(module, args, output):  # noqa: ANN001, ANN202
                first = output[0] if isinstance(output, tuple) else output
                out[site, layer] = first.reshape(self.n, -1).clone()

            return hook

        places = [("attention", i) for i in range(self.model.n_layers)]
        places += [("residual", i) for i in range(self.model.n_layers)] + [("moe", i) for i in self.moe]
        self.forward(run, *((self.module_of(site, i), keep(site, i), False) for site, i in places))
        return out

    def write(self, site: str, layer: int, pos: int, value: torch.Tensor, *, add: bool = False) -> tuple:
        def hook(module, args, output):  # noqa: ANN001, ANN202
            first = (output[0] if isinstance(output, tuple) else output).clone()
            flat = first.view(self.n, -1)
            flat[pos] = flat[pos] + value if add else value
            return (first, *output[1:]) if isinstance(output, tuple) else first

        return self.module_of(site, layer), hook, False

    def weights(self, layer: int, change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> tuple:
        """Change the router weights [n, k] that the experts are given (index, weight -> weight)."""

        def hook(module, args, kwargs):  # noqa: ANN001, ANN202
            values = [*args, *kwargs.values()]
            values[2] = change(values[1], values[2])
            return tuple(values[: len(args)]), dict(zip(kwargs, values[len(args) :], strict=True))

        return self.model.blocks[layer].experts, hook, True

    def routed(self, run: int, layer: int, pos: int) -> list[int]:
        seen: list[list[int]] = []

        def hook(module, args, kwargs):  # noqa: ANN001, ANN202
            seen.append([*args, *kwargs.values()][1].reshape(self.n, -1)[pos].tolist())

        self.forward(run, (self.model.blocks[layer].experts, hook, True))
        return seen[0]

    def update(self, layer: int, pos: int, expert: int) -> torch.Tensor:
        """δ of one expert: the block's output with and without its router weight, clean minus corrupt."""
        parts = []
        for run in (CLEAN, CORRUPT):
            out: list[torch.Tensor] = []

            def keep(module, args, output, out=out):  # noqa: ANN001, ANN202
                out.append((output[0] if isinstance(output, tuple) else output).reshape(self.n, -1)[pos].clone())

            block = self.model.blocks[layer].module
            self.forward(run, (block, keep, False))
            self.forward(run, self.weights(layer, lambda i, w: w.masked_fill(i == expert, 0)), (block, keep, False))
            parts.append(out[0] - out[1])
        return parts[0] - parts[1]


@pytest.fixture(scope="module", params=FAMILIES)
def bench(request: pytest.FixtureRequest) -> Bench:
    return Bench(request.param)


def agrees(got: torch.Tensor, want: torch.Tensor) -> None:
    assert (got - want).abs().max().item() <= LIMIT


def restore(site: str, layer: int, pos: int, run: int = CLEAN) -> Step:
    return Step(site, layer, (pos,), "restore", Value(run))  # type: ignore[arg-type]


@pytest.mark.parametrize("site", ["attention", "moe", "residual"])
@pytest.mark.parametrize("pos", [SUBJECT[-1], 5, LAST])
def test_restoring_one_site(bench: Bench, site: str, pos: int) -> None:
    layers = bench.moe if site == "moe" else range(bench.model.n_layers)
    patches = [Patch(CORRUPT, (restore(site, layer, pos),)) for layer in layers]
    moved = 0.0
    for layer, got in zip(layers, bench.sweep(*patches), strict=True):
        want = bench.forward(CORRUPT, bench.write(site, layer, pos, bench.seen[CLEAN][site, layer][pos]))
        agrees(got, want)
        moved = max(moved, (want - bench.forward(CORRUPT)).abs().max().item())
    assert moved > 0.01  # the patches matter


@pytest.mark.parametrize("site", ["attention", "moe", "residual"])
def test_noising_is_the_mirror_image(bench: Bench, site: str) -> None:
    layer = bench.moe[0]
    (got,) = bench.sweep(Patch(CLEAN, (restore(site, layer, SUBJECT[-1], CORRUPT),)))
    value = bench.seen[CORRUPT][site, layer][SUBJECT[-1]]
    agrees(got, bench.forward(CLEAN, bench.write(site, layer, SUBJECT[-1], value)))


@pytest.mark.parametrize("pos", [SUBJECT[-1], LAST])
def test_a_window_replaces_what_the_run_computes(bench: Bench, pos: int) -> None:
    window = bench.moe[:3]
    (got,) = bench.sweep(Patch(CORRUPT, tuple(restore("moe", layer, pos) for layer in window)))
    writes = [bench.write("moe", layer, pos, bench.seen[CLEAN]["moe", layer][pos]) for layer in window]
    agrees(got, bench.forward(CORRUPT, *writes))


def test_a_window_of_one_layer_is_the_layer_patch(bench: Bench) -> None:
    layer = bench.moe[-1]
    one = Patch(CORRUPT, (restore("moe", layer, LAST),))
    assert one == layer_patch(clean=CLEAN, corrupt=CORRUPT, layer=layer, pos=LAST)


def test_attention_and_moe_of_one_layer_together(bench: Bench) -> None:
    layer = bench.moe[0]
    (got,) = bench.sweep(Patch(CORRUPT, (restore("attention", layer, 4), restore("moe", layer, 4))))
    writes = [bench.write(site, layer, 4, bench.seen[CLEAN][site, layer][4]) for site in ("attention", "moe")]
    agrees(got, bench.forward(CORRUPT, *writes))


def test_several_positions_at_once(bench: Bench) -> None:
    layer = bench.moe[0]
    (got,) = bench.sweep(Patch(CORRUPT, (Step("attention", layer, (4, 5, 7), "restore", Value(CLEAN)),)))
    writes = [bench.write("attention", layer, p, bench.seen[CLEAN]["attention", layer][p]) for p in (4, 5, 7)]
    agrees(got, bench.forward(CORRUPT, *writes))


def test_steps_of_one_cell_follow_each_other(bench: Bench) -> None:
    """What is listed later acts on what is there by then; the stream comes behind the block wherever it is listed."""
    layer, run = bench.moe[0], CORRUPT
    clean, corrupt = (bench.seen[each]["moe", layer][LAST] for each in (CLEAN, CORRUPT))
    expert = bench.routed(CLEAN, layer, LAST)[0]
    add = Step("moe", layer, (LAST,), "add", Updates((expert,), CLEAN, CORRUPT))
    back, forth, behind = (restore("moe", layer, LAST), restore("moe", layer, LAST, CORRUPT),
                           restore("residual", layer, LAST))  # fmt: skip
    delta, stream = bench.update(layer, LAST, expert), bench.seen[CLEAN]["residual", layer][LAST]
    cases = {
        (back, add): bench.write("moe", layer, LAST, clean + delta),
        (add, back): bench.write("moe", layer, LAST, clean),
        (back, forth): bench.write("moe", layer, LAST, corrupt),
        (add, add): bench.write("moe", layer, LAST, 2 * delta, add=True),
        (behind, add): bench.write("residual", layer, LAST, stream),
        (behind, forth): bench.write("residual", layer, LAST, stream),
    }
    for got, want in zip(bench.sweep(*(Patch(run, steps) for steps in cases)), cases.values(), strict=True):
        agrees(got, bench.forward(run, want))


def test_two_experts_added_and_a_later_site(bench: Bench) -> None:
    low, high = bench.moe[0], bench.model.n_layers - 1
    experts = sorted({*bench.routed(CLEAN, low, SUBJECT[-1]), *bench.routed(CORRUPT, low, SUBJECT[-1])})[:2]
    add = Step("moe", low, (SUBJECT[-1],), "add", Updates(tuple(experts), CLEAN, CORRUPT))
    (got,) = bench.sweep(Patch(CORRUPT, (add, restore("attention", high, LAST))))
    delta = sum(bench.update(low, SUBJECT[-1], expert) for expert in experts)
    want = bench.forward(
        CORRUPT,
        bench.write("moe", low, SUBJECT[-1], delta, add=True),
        bench.write("attention", high, LAST, bench.seen[CLEAN]["attention", high][LAST]),
    )
    agrees(got, want)


def test_experts_added_in_two_layers_act_on_what_the_run_computes(bench: Bench) -> None:
    steps, writes = [], []
    for layer in bench.moe[:2]:
        expert = bench.routed(CLEAN, layer, LAST)[0]
        steps.append(Step("moe", layer, (LAST,), "add", Updates((expert,), CLEAN, CORRUPT)))
        writes.append(bench.write("moe", layer, LAST, bench.update(layer, LAST, expert), add=True))
    (got,) = bench.sweep(Patch(CORRUPT, tuple(steps)))
    agrees(got, bench.forward(CORRUPT, *writes))


@pytest.mark.parametrize("positions", [ALL, (LAST,), (4,)], ids=["all", "last", "one"])
@pytest.mark.parametrize("scale", [-1.0, 1.5])
def test_knockout_and_scaling(bench: Bench, positions: tuple[int, ...], scale: float) -> None:
    patches, wanted = [], []
    for layer in bench.moe:
        expert = bench.routed(CLEAN, layer, positions[-1])[0]
        patches.append(Patch(CLEAN, (Step("moe", layer, positions, "add", Own((expert,), scale)),)))

        def change(index, weight, expert=expert):  # noqa: ANN001, ANN202
            here = torch.zeros(N, 1, dtype=torch.bool)
            here[list(positions)] = True
            return torch.where((index == expert) & here, weight * (1 + scale), weight)

        wanted.append(bench.forward(CLEAN, bench.weights(layer, change)))
    agrees(bench.sweep(*patches), torch.stack(wanted))


def test_two_experts_knocked_out_in_two_layers(bench: Bench) -> None:
    steps, doubled, changes = [], [], []
    for layer in bench.moe[:2]:
        experts = bench.routed(CLEAN, layer, LAST)[:2]
        steps.append(Step("moe", layer, ALL, "add", Own(tuple(experts))))
        doubled += [steps[-1], Step("moe", layer, (LAST,), "add", Own((experts[0],)))]  # out twice is out
        chosen = torch.tensor(experts)
        changes.append(bench.weights(layer, lambda i, w, chosen=chosen: w.masked_fill(torch.isin(i, chosen), 0)))
    got = bench.sweep(Patch(CLEAN, tuple(steps)), Patch(CLEAN, tuple(doubled)))
    agrees(got, bench.forward(CLEAN, *changes).expand_as(got))


def test_knocking_out_an_unrouted_expert_changes_nothing(bench: Bench) -> None:
    layer = bench.moe[0]
    used = {expert for pos in ALL for expert in bench.routed(CLEAN, layer, pos)}
    unused = next((e for e in range(bench.model.n_experts) if e not in used), None)
    positions = ALL if unused is not None else (LAST,)
    if unused is None:
        unused = next(e for e in range(bench.model.n_experts) if e not in bench.routed(CLEAN, layer, LAST))
    (got,) = bench.sweep(Patch(CLEAN, (Step("moe", layer, positions, "add", Own((unused,))),)))
    agrees(got, bench.forward(CLEAN))


def test_the_routing_union_is_the_layer_patch(bench: Bench) -> None:
    patches, wanted = [], []
    for layer in bench.moe:
        union = sorted({*bench.routed(CLEAN, layer, LAST), *bench.routed(CORRUPT, layer, LAST)})
        members = (*union, SHARED) if bench.model.structure.has_shared else tuple(union)
        patches.append(Patch(CORRUPT, (Step("moe", layer, (LAST,), "add", Updates(members, CLEAN, CORRUPT)),)))
        wanted.append(layer_patch(clean=CLEAN, corrupt=CORRUPT, layer=layer, pos=LAST))
    agrees(bench.sweep(*patches), bench.sweep(*wanted))


def test_coalitions_by_name_are_the_experts_routed_there(bench: Bench) -> None:
    patches, wanted = [], []
    for pos in (SUBJECT[-1], LAST):
        for layer in bench.moe:
            runs = {CLEAN_TOP_K: (CLEAN,), ROUTING_UNION: (CLEAN, CORRUPT)}
            for name, seen in runs.items():
                members = {e for run in seen for e in bench.routed(run, layer, pos)}
                delta = sum(bench.update(layer, pos, expert) for expert in members)
                wanted.append(bench.forward(CORRUPT, bench.write("moe", layer, pos, delta, add=True)))
                source = Updates((next(iter(members)), name), CLEAN, CORRUPT)  # who is named twice counts once
                patches.append(Patch(CORRUPT, (Step("moe", layer, (pos,), "add", source),)))
    agrees(bench.sweep(*patches), torch.stack(wanted))


@pytest.mark.parametrize("pos", [SUBJECT[-1], LAST])
def test_an_equal_norm_pair_is_scaled_to_the_smaller_norm(bench: Bench, pos: int) -> None:
    """Each of the two vectors alone, and both together."""
    for layer in bench.moe:
        pair = sorted({*bench.routed(CLEAN, layer, pos), *bench.routed(CORRUPT, layer, pos)})[:2]
        deltas = [bench.update(layer, pos, expert) for expert in pair]
        smaller = min(delta.norm() for delta in deltas)
        equal = [delta * smaller / delta.norm().clamp_min(1e-30) for delta in deltas]
        steps = [
            Step("moe", layer, (pos,), "add", Updates((one,), CLEAN, CORRUPT, (other,)))
            for one, other in (pair, pair[::-1])
        ]
        got = bench.sweep(*(Patch(CORRUPT, (step,)) for step in steps), Patch(CORRUPT, tuple(steps)))
        writes = [bench.write("moe", layer, pos, delta, add=True) for delta in equal]
        agrees(got, torch.stack([*(bench.forward(CORRUPT, one) for one in writes), bench.forward(CORRUPT, *writes)]))


def test_an_update_of_zero_makes_its_equal_norm_partner_zero(bench: Bench) -> None:
    layer = bench.moe[0]
    routed = {*bench.routed(CLEAN, layer, LAST), *bench.routed(CORRUPT, layer, LAST)}
    absent = next(e for e in range(bench.model.n_experts) if e not in routed)
    for pair in ((min(routed), absent), (absent, min(routed))):
        source = Updates(pair[:1], CLEAN, CORRUPT, pair[1:])
        (got,) = bench.sweep(Patch(CORRUPT, (Step("moe", layer, (LAST,), "add", source),)))
        agrees(got, bench.forward(CORRUPT))


def test_the_zero_vector_changes_nothing(bench: Bench) -> None:
    patches = [Patch(run, (Step("moe", bench.moe[0], (4,), "add", Nothing()),)) for run in (CLEAN, CORRUPT)]
    agrees(bench.sweep(*patches), torch.stack([bench.forward(CLEAN), bench.forward(CORRUPT)]))


# ---- reroute: what each family's router would have chosen without the expert, worked out by hand -------------------


def _softmax_router(module: torch.nn.Module, h: torch.Tensor, banned: int, k: int, *, renormalise: bool) -> tuple:
    scores = torch.softmax(h @ module.weight.float().T, -1)
    order = [e for e in scores.argsort(-1, descending=True).tolist() if e != banned][:k]
    weight = scores[order]
    return order, weight / weight.sum() if renormalise else weight


def reroute(bench: Bench, layer: int, banned: int, positions: Sequence[int], *, renormalise: bool) -> tuple:
    """The change to a forward: at `positions` the experts that the router would choose without `banned`."""
    router = bench.model.blocks[layer].module.gate

    def hook(module, args, kwargs):  # noqa: ANN001, ANN202
        values = [*args, *kwargs.values()]
        x, index, weight = values[0], values[1].clone(), values[2].clone()
        for pos in positions:
            order, new = _softmax_router(router, x[pos], banned, index.shape[1], renormalise=renormalise)
            index[pos], weight[pos] = torch.tensor(order), new
        values[1:3] = index, weight
        return tuple(values[: len(args)]), dict(zip(kwargs, values[len(args) :], strict=True))

    return bench.model.blocks[layer].experts, hook, True


@pytest.mark.parametrize(("family", "renormalise"), [("qwen3_moe", True), ("mixtral", True), ("olmoe", False)])
@pytest.mark.parametrize("positions", [ALL, (LAST,)], ids=["all", "last"])
def test_reroute(family: str, renormalise: bool, positions: tuple[int, ...]) -> None:
    bench = Bench(family)
    assert bench.model.structure.reroutable
    patches, wanted = [], []
    for layer in bench.moe:
        banned = bench.routed(CLEAN, layer, LAST)[0]
        wanted.append(bench.forward(CLEAN, reroute(bench, layer, banned, positions, renormalise=renormalise)))
        patches.append(Patch(CLEAN, (Step("router", layer, positions, "mask", Masked((banned,))),)))
    agrees(bench.sweep(*patches), torch.stack(wanted))
    assert (torch.stack(wanted) - bench.forward(CLEAN)).abs().max() > 0.01


@pytest.mark.parametrize("family", ["deepseek_v3", "phimoe"])
def test_routers_that_cannot_be_driven_so_are_known(family: str) -> None:
    assert not Bench(family).model.structure.reroutable
