"""The bulk read: of a block of lines, those that are certainly requests, typed and in order.

DuckDB types what differs from line to line (accept.sql). Organizations, keys, models and endpoints come again and
again: each text is looked at once a block, however many lines have it.
"""

from __future__ import annotations

from datetime import datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.contract.tables import EVENT
from pipeline.engine import Engine
from pipeline.line import END_INSTANT, FIRST_INSTANT

# JSON values that are certainly what the rule (line.py) asks for: a pattern, and the most characters of text.
_CERTAIN = {
    "organization_id": ('^"[A-Za-z0-9_-]+"$', 128),
    "api_key_id": ('^(?:null|"[A-Za-z0-9_.:-]+")$', 128),
    "model": (r'^(?:null|"[^\\]*")$', 256),
    "endpoint": (r'^(?:null|"[^\\]*")$', 256),
}
_MAY_BE_MISSING = ("model", "endpoint")
_QUOTES = 2

ACCEPTED = pa.schema([("line", pa.int64()), *EVENT.arrow_schema])


def accept(engine: Engine, lines: pa.Table, candidates: str, latest: datetime) -> pa.Table:
    """The lines that are certainly requests (schema ACCEPTED), in order of day, organization, key and line.

    candidates: the statement that finds a format's fields in `lines`. Requests later than `latest` are from the future.
    """
    engine.name_arrow("lines", lines)
    engine.name_statement("candidates", candidates)
    start, end, latest = (instant.replace(tzinfo=None) for instant in (FIRST_INSTANT, END_INSTANT, latest))
    typed = engine.arrow("accept", start=start, end=end, latest=latest).combine_chunks()
    columns = {name: typed[name].combine_chunks() for name in typed.column_names}
    certain = columns["certain"].to_numpy(zero_copy_only=False)
    texts: dict[str, pa.DictionaryArray] = {}
    for name in _CERTAIN:
        texts[name], is_certain = _judged_texts(columns[name], name)
        certain = certain & is_certain
    taken = np.flatnonzero(certain)
    ranks = [_ranks(texts[name]).take(pa.array(taken)).to_numpy() for name in ("organization_id", "api_key_id")]
    days = columns["timestamp"].cast(pa.date32()).cast(pa.int32()).to_numpy(zero_copy_only=False)[taken]
    numbers = columns["line"].to_numpy()[taken]
    order = pa.array(taken[np.lexsort((numbers, *reversed(ranks), days))])
    return pa.table(
        [
            texts[field.name].dictionary.take(texts[field.name].indices.take(order))
            if field.name in texts
            else columns[field.name].take(order).cast(field.type)
            for field in ACCEPTED
        ],
        schema=ACCEPTED,
    )


def _judged_texts(values: pa.StringArray, name: str) -> tuple[pa.DictionaryArray, npt.NDArray[np.bool_]]:
    """JSON values as their texts, and which of them are certain."""
    pattern, longest = _CERTAIN[name]
    encoded = values.dictionary_encode()
    distinct = encoded.dictionary
    fits = pc.and_(
        pc.match_substring_regex(distinct, pattern), pc.less_equal(pc.utf8_length(distinct), longest + _QUOTES)
    )
    is_null = pc.equal(distinct, "null")
    texts = pc.if_else(is_null, pa.scalar(None, pa.string()), pc.utf8_slice_codeunits(distinct, 1, -1))
    certain = pc.fill_null(fits.take(encoded.indices), name in _MAY_BE_MISSING)
    return pa.DictionaryArray.from_arrays(encoded.indices, texts), certain.to_numpy(zero_copy_only=False)


def _ranks(texts: pa.DictionaryArray) -> pa.Array:
    """The place of each text among all of them."""
    return pc.rank(texts.dictionary, "ascending").take(texts.indices)
