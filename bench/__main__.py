"""`python -m bench`: see `bench.heatmap`."""

import os

# before torch is imported: idle threads must not spin, and nothing is asked of any hub
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("WANDB_MODE", "disabled")

from bench.heatmap import main  # noqa: E402

raise SystemExit(main())
