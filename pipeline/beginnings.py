"""How a log begins: its encoding, the way its CSV is written, and why its lines are no records."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.contract.text_encoding import UTF16_ADVICE, is_utf16
from pipeline.contract.wording import count_of
from pipeline.errors import KeytallyError
from pipeline.format import SEPARATORS, Csv
from pipeline.line import MAX_MAPPED_LINE_BYTES, Reason
from pipeline.tabular import UnusableCsv, csv_records, separator_of

BEGINNING_BYTES = 2**18

# Numbers that show which sign stands before the decimals. `1.000` and `1,000` do not: they may be a thousand.
_THOUSANDS = re.compile(r"-?[1-9][0-9]{0,2}((\.[0-9]{3})+|(,[0-9]{3})+)")
_COMMA = re.compile(r"-?([0-9]+|[1-9][0-9]{0,2}(\.[0-9]{3})+),[0-9]+")
_POINT = re.compile(r"-?([0-9]+|[1-9][0-9]{0,2}(,[0-9]{3})+)\.[0-9]+")
# What an export of OpenTelemetry holds that is no span.
_OTHER_SIGNALS = {"resourceLogs": "logs", "resourceMetrics": "metrics", "resourceProfiles": "profiles"}
_WHY_NO_RECORD = {
    Reason.LINE_TOO_LONG: f"longer than {MAX_MAPPED_LINE_BYTES:,} bytes",
    Reason.INVALID_UTF8: "not UTF-8",
    Reason.NOT_JSON: "not JSON",
    Reason.NOT_AN_OBJECT: "not one JSON object",
}


def check_encoding(path: Path, beginning: bytes) -> None:
    """Raise KeytallyError for a text that is UTF-16."""
    if not path.name.endswith(".parquet") and is_utf16(beginning):
        raise KeytallyError(f"{path} cannot be read: {UTF16_ADVICE}")


def csv_of(beginning: bytes) -> Csv:
    """Return how a CSV file is written that begins so."""
    lines = (line for line in beginning.removeprefix(b"\xef\xbb\xbf").splitlines() if line.strip())
    header = next((line for line in lines if not line.lower().startswith(b"sep=")), b"")
    name = separator_of(header)
    if name == "commas":
        return Csv()
    whole_lines = beginning[: beginning.rfind(b"\n") + 1] or beginning
    try:
        batches = list(csv_records(io.BytesIO(whole_lines), Csv(SEPARATORS[name])))
    except UnusableCsv:
        return Csv(SEPARATORS[name])
    texts = (text for batch in batches for text in batch.column("text").to_pylist() if text)
    cells = [cell for text in texts for cell in json.loads(text).values()]
    clear = [cell for cell in cells if not _THOUSANDS.fullmatch(cell)]
    commas, points = (sum(bool(number.fullmatch(cell)) for cell in clear) for number in (_COMMA, _POINT))
    return Csv(SEPARATORS[name], decimal_commas=commas > points)


def check_other_signals(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Raise KeytallyError for exports of OpenTelemetry that hold no spans."""
    for name, what in _OTHER_SIGNALS.items():
        if any(name in record for record in records) and not any("resourceSpans" in record for record in records):
            raise KeytallyError(
                f"{path} holds OpenTelemetry {what} ({name}), and keytally reads spans (resourceSpans): let the"
                " producer export traces, or write one JSON object for each request"
            )


def no_record(path: Path, kind: str, lines: pa.Table, beginning: bytes) -> KeytallyError:
    """The error for a beginning of a file in which no line is a record."""
    what = "as many cells in each row as in its header" if kind == "csv" else "one JSON object on each line"
    said = f"{path} holds no record in its first {count_of(len(lines), 'line')}: a log has {what}"
    if kind == "csv":
        return KeytallyError(said)
    reasons = Counter(lines["reason"].to_pylist())
    first = beginning.removeprefix(b"\xef\xbb\xbf").lstrip().split(b"\n", 1)[0].strip()
    reason = next((Reason(reason) for reason, _ in reasons.most_common() if reason), Reason.NOT_JSON)
    if first in (b"{", b"["):
        return KeytallyError(f"{said}; this one has an object over several lines: 'jq -c .' writes each on one")
    if reason is Reason.NOT_AN_OBJECT and first.startswith(b"["):
        return KeytallyError(f"{said}; this one has an array: 'jq -c .[]' writes each of its objects on a line")
    return KeytallyError(f"{said}; {_many(len(lines))} {_WHY_NO_RECORD[reason]}")


def _many(lines: int) -> str:
    return "this line is" if lines == 1 else "these lines are"
