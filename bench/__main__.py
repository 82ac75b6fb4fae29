"""`python -m bench [heatmap|engine|disk|commits|viewers|first] ...`: against other methods (`bench.heatmap`), our
engine on its own (`bench.engine`), a model larger than the memory that it may take (`bench.disk`), our engine at two
commits (`bench.commits`), many viewers of one dashboard (`bench.viewers.load`), its first page (`bench.first_page`)."""

import importlib
import os
import sys

# before torch is imported: idle threads must not spin, and nothing is asked of any hub
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("WANDB_MODE", "disabled")

WHAT = {
    "heatmap": "heatmap", "engine": "engine", "disk": "disk", "commits": "commits", "viewers": "viewers.load",
    "first": "first_page",
}  # fmt: skip
"""What is measured, and the module that does it; the first without being named."""

chosen = sys.argv.pop(1) if len(sys.argv) > 1 and sys.argv[1] in WHAT else next(iter(WHAT))
raise SystemExit(importlib.import_module(f"bench.{WHAT[chosen]}").main())
