"""Values for the tests of the store: runs, row sets and answers made of them, different for every seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

MODEL = "demo [f00d]"


def rows(seed: int = 0, n: int = 40) -> pd.DataFrame:
    """Result rows as an engine might hand them over: plain dtypes, with everything missing that may be missing."""
    rng = np.random.default_rng(seed)
    kinds = ["clean", "corrupt", *rng.choice(["layer", "expert", "shared"], n - 2)]
    expert = [int(rng.integers(128)) if kind == "expert" else None for kind in kinds]
    return pd.DataFrame(
        {
            "kind": kinds,
            "layer": [None, None, *rng.integers(48, size=n - 2).tolist()],
            "pos": [np.nan, np.nan, *rng.integers(30, size=n - 2).tolist()],
            "expert": pd.array(expert, dtype="Int64"),
            "clean_active": [None if e is None else bool(rng.integers(2)) for e in expert],
            "router_weight_clean": [np.nan if e is None else rng.random() for e in expert],
            "router_weight_corrupt": [np.nan if e is None else rng.random() for e in expert],
            "true_logit": rng.normal(size=n) * 1e-3,
            "foil_logit": np.where(np.arange(n) == 3, np.nan, rng.normal(size=n) * 1e9),
            "direct": [None if e is None else rng.normal() for e in expert],
        }
    )


def routing(seed: int = 0, n: int = 24) -> pd.DataFrame:
    """A routing table with missing margins."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "layer": np.arange(n) // 4,
            "pos": np.arange(n, dtype=np.int32) // 2 % 2,
            "slot": np.arange(n) % 2,
            "expert": rng.integers(128, size=n),
            "router_weight": rng.random(n),
            "margin": np.where(np.arange(n) % 3 == 0, np.nan, rng.random(n)),
            "near_tie": [None if i % 3 == 0 else i % 5 == 0 for i in range(n)],
        }
    )


def payload(seed: int = 0, size: int = 10_000) -> bytes:
    """Bytes that do not compress."""
    return np.random.default_rng(seed).bytes(size)


def answer(name: str, *, seed: int = 0, size: int = 10_000, draws: int = 2) -> dict[str, list[Any]]:
    """Arguments of `Store.write`: `draws` runs, as many row sets, one manifest naming them all."""
    runs = [f"{name}-run{i}" for i in range(draws)]
    pairs = [(f"{name}-pair{i}", "layer") for i in range(draws)]
    return {
        "runs": [(key, payload(seed + i, size), {"draw": i}, routing(seed + i)) for i, key in enumerate(runs)],
        "rows": [(*pair, rows(seed + i), {"origin": name, "draw": i}) for i, pair in enumerate(pairs)],
        "manifests": [(name, {"runs": runs, "pairs": [list(pair) for pair in pairs]})],
    }


def parts_there(store: Any, name: str, draws: int = 2) -> list[bool]:
    """For every part of `answer(name)`, manifest first, whether it is in the store. Counts as a use of each."""
    runs, pairs = [f"{name}-run{i}" for i in range(draws)], [(f"{name}-pair{i}", "layer") for i in range(draws)]
    return [
        store.get_manifest(name) is not None,
        *(store.get_run(key) is not None for key in runs),
        *(store.get_rows(*pair) is not None for pair in pairs),
    ]


def same(read: pd.DataFrame, written: pd.DataFrame) -> bool:
    """Whether two tables hold the same values, bit for bit, missing in the same places; dtypes aside."""
    if list(read.columns) != list(written.columns) or len(read) != len(written):
        return False
    return all(_plain(read[name]) == _plain(written[name]) for name in written.columns)


def _plain(column: pd.Series) -> list[Any]:
    return [None if pd.isna(value) else value if isinstance(value, str) else float(value) for value in column]
