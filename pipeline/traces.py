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
COLUMNS = ("record_id", "parent_id", "role", "scope")

_SPAN = pa.schema([MAPPED.field(name) for name in (*COLUMNS, "organization_id", "request_id", "model", "status")])


class Traces:
    """The records of one file that belong to traces. A context manager.

    Use `undoubted` for every table of records, and when the file is read `waiting`, then the counts.
    """

    def __init__(self, engine: Engine, scratch: Path) -> None:
        self._engine = engine
        self._waiting = Spool(scratch / "waiting.arrow", MAPPED)
        self._is_used = False
        self._waits = False
        self.skipped: Counter[str] = Counter()
        self.merged = 0
        self.undecided = 0

    def __enter__(self) -> Traces:
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.__exit__(None, None, None)

    def undoubted(self, records: pa.Table) -> pa.Table:
        """Take records (schema MAPPED) in; those of them that need not wait.

        An agent waits for the calls below it, and a failed call that has no response id for the one above it.
        """
        if records["record_id"].null_count == len(records):
            return records
        if not self._is_used:
            self._engine.run("create_trace_span")
            self._is_used = True
        self._engine.name_arrow("records", records.select(_SPAN.names))
        self._engine.run("add_trace_spans")
        is_unnamed_call = pc.and_kleene(
            pc.equal(records["role"], "call"), pc.equal(records["request_id"], records["record_id"])
        )
        waits = pc.or_kleene(
            pc.equal(records["role"], "agent"), pc.and_kleene(is_unnamed_call, pc.is_valid(records["parent_id"]))
        )
        waits = pc.fill_null(waits, False)
        if pc.any(waits).as_py():
            self._waits = True
            for batch in records.filter(waits).combine_chunks().to_batches():
                self._waiting.add(batch)
        return records.filter(pc.invert(waits))

    def waiting(self) -> Iterator[pa.Table]:
        """The records that waited and are requests; the others, and what was merged, are counted."""
        if not self._is_used:
            return
        if self._waits:
            self._engine.run("resolve_trace_spans")
            for batch in self._waiting.read():
                records = pa.Table.from_batches([batch])
                self._engine.name_arrow("records", records.select(_SPAN.names))
                verdicts = dict(self._engine.query("verdicts_on_trace_spans"))
                verdict = pa.array([verdicts.get(record) for record in records["record_id"].to_pylist()], pa.string())
                for reason, word in ((AGENT, "agent"), (MERGED, "merged")):
                    self.skipped[reason] += pc.sum(pc.equal(verdict, word)).as_py() or 0
                yield records.filter(pc.is_null(verdict))
            ((self.merged,),) = self._engine.query("count_merged_failures")
        ((same_call, self.undecided),) = self._engine.query("count_merged_spans")
        self.merged += same_call
