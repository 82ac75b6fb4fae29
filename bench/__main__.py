"""`python -m bench [heatmap|engine] ...`: against other methods (see `bench.heatmap`), or our engine on its own (see
`bench.engine`)."""

import importlib
import os
import sys

# before torch is imported: idle threads must not spin, and nothing is asked of any hub
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("WANDB_MODE", "disabled")

WHAT = ("heatmap", "engine")

chosen = sys.argv.pop(1) if len(sys.argv) > 1 and sys.argv[1] in WHAT else WHAT[0]
raise SystemExit(importlib.import_module(f"bench.{chosen}").main())
