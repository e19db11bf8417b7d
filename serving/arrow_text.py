"""Text, and days, for Arrow to work with.

Not by pa.array() or pa.scalar(), nor as an argument that Arrow would make one of: they import pandas, half a second and
35 MB, only to rule out that they were given a data frame.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from datetime import date
from functools import lru_cache

import pyarrow as pa


def text_array(texts: Iterable[str]) -> pa.StringArray:
    """The texts, as an array."""
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    ends = array("i", [0])
    for text in encoded:
        ends.append(ends[-1] + len(text))
    return pa.Array.from_buffers(pa.string(), len(encoded), [None, pa.py_buffer(ends), pa.py_buffer(b"".join(encoded))])


@lru_cache(maxsize=64)
def text_scalar(text: str) -> pa.StringScalar:
    """The text, as a value."""
    return text_array([text])[0]


@lru_cache(maxsize=64)
def day_scalar(day: date) -> pa.Date32Scalar:
    """The day, as a value."""
    days = array("i", [(day - date(1970, 1, 1)).days])
    return pa.Array.from_buffers(pa.date32(), 1, [None, pa.py_buffer(days)])[0]
