"""Traces: several records of a log may tell of one call, and an agent's repeat the tokens of the calls below it.

Which of them are requests shows only when the whole file is read: a parent ends, and is written, after its children.
So records that cannot be decided yet wait until then. The ancestry of all records is a table in the engine, which
spills what it cannot hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.engine import Engine
from pipeline.records import MAPPED
from pipeline.spool import Spool

AGENT = "an agent whose model calls are in the log too"
MERGED = "a second span of the same call"
UNDECIDED = "a span below another one, or beside it, that may tell of the same call"
LOST_AGENT = "an agent with tokens that was left out, although no model call below it has any"
COLUMNS = ("record_id", "parent_id", "role", "scope")

_TOKENS = ("input_tokens", "output_tokens")
_SPAN = pa.schema(
    [MAPPED.field(name) for name in (*COLUMNS, "organization_id", "request_id", "model", "status", *_TOKENS)]
)


class Traces:
    """The records of one file that belong to traces. A context manager.

    Use `undoubted` for every table of records, then `waiting` when the whole file is read, then the counts.

    Attributes:
        skipped: How many agents were left out.
        merged: How many spans tell of a request that another span tells of too.
        undecided: How many spans nobody can decide about, by reason.
    """

    def __init__(self, engine: Engine, scratch: Path) -> None:
        self._engine = engine
        self._waiting = Spool(scratch / "waiting.arrow", MAPPED)
        self._is_used = False
        self.skipped: Counter[str] = Counter()
        self.merged = 0
        self.undecided: Counter[str] = Counter()

    def __enter__(self) -> Traces:
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.__exit__(None, None, None)

    def undoubted(self, records: pa.Table) -> pa.Table:
        """Take in records (schema MAPPED), and return those of them that need not wait.

        An agent waits for the calls below it. A failed call without a response id waits for those above and below it.
        """
        if records["record_id"].null_count == len(records):
            return records
        if not self._is_used:
            self._engine.run("create_trace_span")
            self._is_used = True
        self._engine.name_arrow("records", records.select(_SPAN.names))
        self._engine.run("add_trace_spans")
        is_unnamed_call = pc.and_kleene(
            pc.or_kleene(pc.equal(records["role"], "call"), pc.equal(records["role"], "embedding")),
            pc.equal(records["request_id"], records["record_id"]),
        )
        is_failed = pc.match_substring_regex(records["status"], "^0*[45][0-9]{2}$")
        waits = pc.or_kleene(pc.equal(records["role"], "agent"), pc.and_kleene(is_unnamed_call, is_failed))
        waits = pc.fill_null(waits, False)
        if pc.any(waits).as_py():
            for batch in records.filter(waits).combine_chunks().to_batches():
                self._waiting.add(batch)
        return records.filter(pc.invert(waits))

    def waiting(self) -> Iterator[pa.Table]:
        """Yield the records that waited and are requests, under the ids of their requests; count all others."""
        if not self._is_used:
            return
        self._engine.run("resolve_failed_spans")
        self._engine.run("resolve_agents")
        for batch in self._waiting.read():
            records = pa.Table.from_batches([batch])
            self._engine.name_arrow("records", records.select(_SPAN.names))
            requests = dict(self._engine.query("verdicts_on_trace_spans"))
            ids = records["record_id"].to_pylist()
            is_request = pa.array([requests.get(record, record) is not None for record in ids], pa.bool_())
            self.skipped[AGENT] += len(ids) - is_request.true_count
            own = records["request_id"].to_pylist()
            of_request = [requests.get(record, request) for record, request in zip(ids, own, strict=True)]
            place = records.schema.names.index("request_id")
            named = records.set_column(place, records.schema.field(place), pa.array(of_request, pa.string()))
            yield named.filter(is_request)
        ((self.merged, undecided, lost),) = self._engine.query("count_merged_spans")
        self.undecided = +Counter({UNDECIDED: undecided, LOST_AGENT: lost})
        self.skipped = +self.skipped
