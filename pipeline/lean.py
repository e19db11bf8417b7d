"""What a process of ours does not need and would pay for: pandas."""

from __future__ import annotations

import sys

import pyarrow as pa


def leave_pandas_out() -> None:
    """Let pyarrow take it that there is no pandas, unless it is loaded already. For a process that is all ours.

    pyarrow loads it with the first Python value that it is given, only to see that it is no data frame: a third of a
    second and 40 MB in every run.
    """
    if "pandas" in sys.modules:
        return
    sys.meta_path.insert(0, _NoPandas)
    try:
        pa.scalar(0)  # here it looks, once
    finally:
        sys.meta_path.remove(_NoPandas)


class _NoPandas:
    """Finds no pandas."""

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name)
