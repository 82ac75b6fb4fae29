"""Parquet files of strangers, read within limits: a few kilobytes of them can stand for any number of gigabytes.

What a file says of its own size counts equal values once, so a text is kept as a reference to the one copy that the
file has until it is known how much all of them take. Knows Arrow only; not what the columns mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

MAX_BYTES = 512 * 2**20
"""Of a file when each of its values stands for itself."""
MAX_COLUMNS = 1000
_BATCH_ROWS = 10_000
_LONGEST_FIXED = 64  # bytes of one value of fixed length: decimals and the like


class TooLarge(ValueError):
    """The file unpacks to more than it may."""


class TooManyColumns(TooLarge):
    """`n`: how many there are, of nested values each leaf."""

    def __init__(self, n: int) -> None:
        super().__init__(f"{n:,} columns")
        self.n = n


def batches(
    content: bytes, *, max_rows: int, max_values: int, max_columns: int = MAX_COLUMNS, max_bytes: int = MAX_BYTES
) -> Iterator[Any]:
    """The file's record batches, texts as dictionaries, each checked before it is given out.

    Raises `TooLarge` as soon as a limit is passed, and whatever pyarrow raises for what is no Parquet file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(pa.BufferReader(content))
    meta, columns = file.metadata, range(file.metadata.num_columns)
    if meta.num_columns > max_columns:
        raise TooManyColumns(meta.num_columns)
    schema = [file.schema.column(i) for i in columns]
    if any(column.physical_type == "FIXED_LEN_BYTE_ARRAY" and column.length > _LONGEST_FIXED for column in schema):
        raise TooLarge("values of fixed length")
    chunks = [meta.row_group(group).column(i) for group in range(meta.num_row_groups) for i in columns]
    if meta.num_rows > max_rows or sum(chunk.num_values for chunk in chunks) > max_values:
        raise TooLarge("rows or values")
    if sum(chunk.total_uncompressed_size for chunk in chunks) > max_bytes:
        raise TooLarge("bytes")
    texts = [column.path for column in schema if column.physical_type == "BYTE_ARRAY"]
    file = pq.ParquetFile(pa.BufferReader(content), read_dictionary=texts)
    size = 0
    for batch in file.iter_batches(batch_size=_BATCH_ROWS):
        size += sum(_bytes(column) for column in batch.columns)
        if size > max_bytes:
            raise TooLarge("bytes")
        yield batch


def size(content: bytes, *, max_rows: int, max_bytes: int) -> tuple[int, int]:
    """(rows, bytes when each value stands for itself) of a file with at most 100 columns. Raises as `batches` does."""
    rows = taken = 0
    for batch in batches(content, max_rows=max_rows, max_values=100 * max_rows, max_columns=100, max_bytes=max_bytes):
        rows, taken = rows + batch.num_rows, taken + sum(_bytes(column) for column in batch.columns)
    return rows, taken


def _bytes(array: Any) -> int:
    """What an Arrow array takes when each of its values stands for itself."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    if pa.types.is_dictionary(kind):
        values = array.dictionary
        if not (pa.types.is_string(values.type) or pa.types.is_binary(values.type)):
            return max(_bytes(values), 8) * len(array)
        lengths = pc.binary_length(values).cast("int64")
        return (pc.sum(lengths.take(array.indices)).as_py() or 0) + 8 * len(array)
    if pa.types.is_struct(kind):
        return sum(_bytes(field) for field in array.flatten()) + len(array)
    if pa.types.is_nested(kind):  # lists and maps
        return _bytes(array.flatten()) + 8 * len(array)
    return array.nbytes
