"""The bulk read: of a block of lines, those that are certainly requests, typed and in order.

DuckDB types what differs from line to line (accept.sql). Organizations, keys, models and endpoints come again and
again: each text is looked at once a block, however many lines have it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

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
    "deployed_model": (r'^(?:null|"[^\\]*")$', 256),
    "provider": (r'^(?:null|"[^\\]*")$', 256),
}
# What may stand for JSON of another kind in a mapped format, and more: the rule book decides.
_NOT_CERTAIN = r'^"(?:true|false|\{.*\}|\[.*\])"$'
_MAY_BE_MISSING = ("model", "endpoint", "deployed_model", "provider")
_QUOTES = 2

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DAY = 86_400_000_000  # microseconds


def accept(engine: Engine, lines: pa.Table, candidates: str, latest: datetime) -> pa.Table:
    """The lines that are certainly requests (rows of EVENT), in order of day, organization, key and line.

    candidates: the statement that finds a format's fields in `lines`. Requests later than `latest` are from the future.
    """
    engine.define("bulk_functions")
    engine.name_arrow("lines", lines)
    engine.name_statement("candidates", candidates)
    typed = engine.arrow("accept").combine_chunks()
    columns = {name: typed[name].combine_chunks() for name in typed.column_names}
    instants = pc.fill_null(columns["timestamp"].cast(pa.int64()), _microseconds(FIRST_INSTANT) - 1).to_numpy()
    certain = columns["certain"].to_numpy(zero_copy_only=False)
    certain = certain & (instants >= _microseconds(FIRST_INSTANT)) & (instants < _microseconds(END_INSTANT))
    certain = certain & (instants <= _microseconds(latest))
    texts: dict[str, pa.DictionaryArray] = {}
    for name in _CERTAIN:
        texts[name], is_certain = _judged_texts(columns[name], name)
        certain = certain & is_certain
    taken = np.flatnonzero(certain)
    place = instants[taken] // _DAY
    for name in ("organization_id", "api_key_id"):  # 2^15 days and 2^20 different texts at most: 55 bits
        place = place * (len(texts[name].dictionary) + 1) + _ranks(texts[name], taken)
    order = pa.array(taken[np.lexsort((columns["line"].to_numpy()[taken], place))])
    return pa.table(
        [
            texts[field.name].dictionary.take(texts[field.name].indices.take(order))
            if field.name in texts
            else columns[field.name].take(order).cast(field.type)
            for field in EVENT.arrow_schema
        ],
        schema=EVENT.arrow_schema,
    )


def _judged_texts(values: pa.StringArray, name: str) -> tuple[pa.DictionaryArray, npt.NDArray[np.bool_]]:
    """JSON values as their texts, and which of them are certain."""
    pattern, longest = _CERTAIN[name]
    encoded = values.dictionary_encode()
    distinct = encoded.dictionary
    fits = pc.and_(
        pc.match_substring_regex(distinct, pattern), pc.less_equal(pc.utf8_length(distinct), longest + _QUOTES)
    )
    fits = pc.and_not(fits, pc.match_substring_regex(distinct, _NOT_CERTAIN))
    is_null = pc.equal(distinct, "null")
    texts = pc.if_else(is_null, pa.scalar(None, pa.string()), pc.utf8_slice_codeunits(distinct, 1, -1))
    certain = pc.fill_null(fits.take(encoded.indices), name in _MAY_BE_MISSING)
    return pa.DictionaryArray.from_arrays(encoded.indices, texts), certain.to_numpy(zero_copy_only=False)


def _ranks(texts: pa.DictionaryArray, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The place of the text of each of these rows among all texts."""
    ranks: npt.NDArray[np.int64] = pc.rank(texts.dictionary, "ascending").to_numpy().astype(np.int64)
    found: npt.NDArray[np.int64] = ranks[texts.indices.take(pa.array(rows)).to_numpy()]
    return found


def _microseconds(instant: datetime) -> int:
    """Microseconds since 1970."""
    return (instant - _EPOCH) // timedelta(microseconds=1)
