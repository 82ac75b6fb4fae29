"""The store: one DuckDB file with what was computed, so that a question asked twice is answered once.

It knows bytes, data frames and JSON. It knows neither torch nor Streamlit, nor what the numbers mean.
"""

from .location import default_path
from .store import Store, StoredRun

__all__ = ["Store", "StoredRun", "default_path"]
