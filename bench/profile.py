"""Where the time of a call goes: torch's own operations, grouped, and what is left between them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

GROUPS = (
    ("matrix products", ("mm", "addmm", "bmm", "baddbmm", "_grouped_mm", "linear", "mkldnn", "einsum")),
    ("attention kernel", ("scaled_dot_product", "_flash_attention")),
    ("copies, gathers and scatters", (
        "copy_", "index", "cat", "gather", "scatter", "clone", "contiguous", "select", "repeat", "expand", "stack",
        "slice", "view", "reshape", "transpose", "split", "zeros", "empty", "to", "_to_copy", "fill_", "resize_",
    )),
    ("routing", ("topk", "sort", "argsort", "softmax", "sigmoid", "histc", "cumsum", "bincount", "one_hot", "nonzero")),
)  # fmt: skip
OTHER, BETWEEN = "elementwise and other operations", "between operations (Python, dispatch, hooks)"


def profile(call: Callable[[], object], *, rounds: int) -> dict[str, float]:
    """Share of the call's wall time by group, which sum to 1: operators' own time from a profiled run; the time between
    operators is that of the profiled run that no operator accounts for."""
    call()
    shares: list[dict[str, float]] = []
    for _ in range(rounds):
        with torch_profile(activities=[ProfilerActivity.CPU]) as seen:
            begin = time.perf_counter()
            call()
            wall = time.perf_counter() - begin
        times = dict.fromkeys((*(name for name, _ in GROUPS), OTHER), 0.0)
        for event in seen.key_averages():
            times[_group(event.key)] += event.self_cpu_time_total / 1e6
        shares.append({name: seconds / wall for name, seconds in times.items()})
    out = {name: statistics.median(share[name] for share in shares) for name in shares[0]}
    return {**out, BETWEEN: max(0.0, 1.0 - sum(out.values()))}


def _group(operator: str) -> str:
    name = operator.removeprefix("aten::")
    for group, starts in GROUPS:
        if any(name == s or name.startswith(f"{s}_") or (len(s) > 4 and name.startswith(s)) for s in starts):
            return group
    return OTHER
