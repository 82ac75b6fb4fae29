"""The child of `bench.commits`: one commit's code, from the folder that is named, timed once for every line that comes.

`python -P commit_child.py FOLDER THREADS`. Knows of that commit `bench.case`, `MoeModel` and `trace_prepared` only.
"""

import gc
import json
import os
import sys
import time

out = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what libraries print must not get between the answers
sys.path.insert(0, sys.argv[1])

import torch  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

from bench.case import NOISE_LEVEL, build_case, build_model, build_tokenizer  # noqa: E402
from core.moe import MoeModel  # noqa: E402
from core.trace import trace_prepared  # noqa: E402

torch.set_num_threads(int(sys.argv[2]))
torch.set_grad_enabled(False)
case = build_case(build_model(), build_tokenizer(), draws=1)
model, fact = MoeModel(case.model), case.prepared


def heat_map():  # noqa: ANN201 - whatever that commit returns
    """The base heat map."""
    return trace_prepared(model, [fact], noise=NOISE_LEVEL, experts="none")


frame = heat_map()[0].frame
with profile(activities=[ProfilerActivity.CPU]) as seen:
    heat_map()
calls = sum(event.count for event in seen.key_averages() if event.key.startswith("aten::"))
print(json.dumps({"total": float(frame[frame.kind == "layer"].contrast.sum()), "calls": calls}), file=out, flush=True)
for _ in sys.stdin:
    gc.collect()
    cpu, wall = time.process_time(), time.perf_counter()
    heat_map()
    taken = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    print(json.dumps(taken), file=out, flush=True)
