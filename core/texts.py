"""How tables hold their texts: as Python's own strings, not in Arrow's buffers, pandas' choice where pyarrow is there.

Importing this sets it, for the whole process. The tables here are small and read row by row by many viewers at once:
each look into an Arrow buffer is a call that lets go of Python's lock, and waits to get it back.
"""

import pandas as pd

pd.options.mode.string_storage = "python"
