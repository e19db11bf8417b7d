"""Amounts as text: every digit, at least one decimal, no further trailing zeros, never an exponent."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import PlainSerializer, WithJsonSchema

from serving.arrow_text import text_scalar


def amount_text(amount: Decimal) -> str:
    """`amount` as a JSON number with all its digits: at least one decimal, no further trailing zeros, no exponent."""
    whole, _, decimals = f"{amount:f}".partition(".")
    return f"{whole}.{decimals.rstrip('0') or '0'}"


def amount_texts(amounts: pa.ChunkedArray) -> pa.ChunkedArray:
    """`amount_text` of each; of type decimal(38, …), none of them below zero or null. Beside other threads."""
    scale = amounts.type.scale
    # The unscaled integer: Arrow writes a decimal as 1E-12 as well.
    integers = [chunk.view(pa.decimal128(38, 0)) for chunk in amounts.chunks]
    digits = pc.utf8_lpad(pa.chunked_array(integers, pa.decimal128(38, 0)).cast(pa.string()), scale + 1, "0")
    decimals = pc.utf8_rtrim(pc.utf8_slice_codeunits(digits, -scale), "0")
    decimals = pc.if_else(pc.equal(decimals, text_scalar("")), text_scalar("0"), decimals)
    return pc.binary_join_element_wise(pc.utf8_slice_codeunits(digits, 0, -scale), decimals, text_scalar("."))


def _raw(amount: Decimal) -> msgspec.Raw:
    return msgspec.Raw(amount_text(amount).encode("ascii"))


Amount = Annotated[Decimal, PlainSerializer(_raw, return_type=Any), WithJsonSchema({"type": "number", "minimum": 0})]
"""An exact decimal. A float would lose its digits, and a JSON library's own way with decimals may write 1E-12."""
