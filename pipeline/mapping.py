"""Mapping: the SQL of a format, run over parsed records and nothing else.

A format may be anybody's. Its SQL runs in a database of its own that holds nothing but the records, has a little
memory, one thread and no way out: no files, no network, no extensions, no settings. Its syntax tree is looked at first,
since what it makes of a record must depend on that record alone: not on the clock, chance or the deployment.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.contract.tables import EVENT
from pipeline.engine import statement
from pipeline.errors import FormatRefused
from pipeline.format import Format

MEMORY_BYTES = 128 * 2**20
LONG_LINE_BYTES = 640 * 2**20  # for one line that needs more: DuckDB counts nine times what a line of 64 MiB holds
SECONDS = 60.0  # for some megabytes of records
MOST_RECORDS = 100_000  # that the SQL sees at once
MOST_REQUESTS = 500_000  # that it may make of them

FIELDS = tuple(name for name in EVENT.arrow_schema.names if name not in ("currency", "most_complete", "line"))
# What the SQL may say of a record besides: why it is left out; which one it is among those that tell of one call.
ABOUT = ("skipped", "record_id", "parent_id", "role", "scope")
REQUESTS = pa.schema([("line", pa.int64()), *((name, pa.string()) for name in (*FIELDS, *ABOUT))])
LONGEST_ID = 128  # characters of a request_id; of a longer one the hash is the id

_MAY_BE_MISSING = {
    *("cached_input_tokens", "cache_write_tokens", "reasoning_tokens", "deployed_model", "provider"),
    *ABOUT,
}
_INTEGERS = re.compile(r"U?(TINYINT|SMALLINT|INTEGER|BIGINT|HUGEINT)")
_NUMBERS = {"line", "status", *(name for name in FIELDS if name.endswith("_tokens"))}
_AMOUNTS = {"cost", "synapses", "neurons"}

# What SQL spells without brackets, so that it looks like a column.
_SPELLED_AS_COLUMNS = re.compile(r"current_\w+|local(time|timestamp)|user|session_user", re.IGNORECASE)
_TABLE_FUNCTIONS = {"unnest", "generate_series", "range", "json_each"}


class MappedRecords:
    """The SQL of one format, ready to be run. Used by one thread; to be closed.

    Raises FormatRefused when it cannot be used for any record.
    """

    def __init__(self, format: Format, memory_bytes: int = MEMORY_BYTES) -> None:
        import duckdb  # noqa: PLC0415  # a run with nothing new does not wait for it

        if format.problem:
            raise FormatRefused(format.problem)
        self._format = format
        self._name = format.name
        self._memory_bytes = memory_bytes
        self.given: frozenset[str] = frozenset()  # the columns that the SQL gives
        self._given = _Given()
        self._connection = duckdb.connect(
            config={
                "memory_limit": f"{memory_bytes}B",
                "threads": 1,
                "temp_directory": "",
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
            }
        )
        try:
            self._connection.execute("set timezone = 'UTC'; set enable_progress_bar = false")
            self._connection.execute("set enable_external_access = false; set python_enable_replacements = false")
            self._connection.register("records", self._given)
            self._connection.execute(statement("format_functions"))
            self._check_syntax(format.text)
            self._connection.execute("set lock_configuration = true")
            requests = self._as_text(self._connection.sql(format.text.rstrip().rstrip(";")), format)
            requests.create_view("requests")
            # To plan it takes as long as to run it over some megabytes.
            self._connection.execute(f"prepare requests_of_records as from requests limit {MOST_REQUESTS + 1}")
        except duckdb.Error as error:
            self.close()
            raise self._refused(f"is no SQL that works: {_first_line(error)}") from error
        except FormatRefused:
            self.close()
            raise

    def close(self) -> None:
        self._connection.close()
        del self._connection  # an error's frames may keep us; a connection kept to the end is told as leaked

    def _refused(self, why: str) -> FormatRefused:
        return FormatRefused(f"formats/{self._name}.sql {why}")

    # --- what it may say -----------------------------------------------------------------------------------------

    def _check_syntax(self, text: str) -> None:
        ((tree,),) = self._connection.execute(statement("syntax"), {"text": text}).fetchall()
        parsed = json.loads(tree)
        if parsed["error"]:
            what = parsed["error_message"].split("\n", 1)[0].replace("serialized to json", "a format")
            raise self._refused(f"is no select statement: {what}")
        if len(parsed["statements"]) != 1:
            raise self._refused("must be one select statement")
        pure = {name for (name,) in self._connection.execute(statement("pure_functions")).fetchall()}
        nodes = list(_nodes(parsed))
        named = {"records"} | {entry["key"].lower() for node in nodes for entry in _ctes(node)}
        if any(node.get("sample") for node in nodes):
            raise self._refused("reads a sample of its records, which chance picks; it may read them all")
        for node in nodes:
            if foreign := _foreign(node, named, pure):
                raise self._refused(f"reads {foreign}; it may read nothing but its records")

    def _as_text(self, relation: Any, format: Format) -> Any:
        """The same rows with each column as text, in the order of REQUESTS."""
        names = [name.lower() for name in relation.columns]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise self._refused(f"gives column {twice} twice")
        types = {name: str(kind) for name, kind in zip(names, relation.dtypes, strict=True)}
        optional = set(_MAY_BE_MISSING)
        if format.terms.book_prices:
            optional.add("cost")
        if format.terms.tokens_as_units:
            optional |= {"synapses", "neurons"}
        for name in REQUESTS.names:
            if name not in types and name not in optional:
                hint = {
                    "line": "pass it through from records",
                    "cost": "or say '-- prices: book' in the header",
                    "synapses": "or say '-- units: tokens' in the header",
                    "neurons": "or say '-- units: tokens' in the header",
                }.get(name, "null will do where the log has nothing of the kind")
                raise self._refused(f"gives no column {name}: add it, {hint}")
        if unknown := [name for name in types if name not in REQUESTS.names]:
            raise self._refused(f"gives a column {unknown[0]}, which no request has")
        self.given = frozenset(types)
        if "skipped" in types and not format.skips:
            raise self._refused("gives a column skipped: say in the header which records it skips, '-- skips: ...'")
        columns = (f"{self._text_of(name, types.get(name, 'NULL'))} as {name}" for name in REQUESTS.names)
        texts = relation.project(", ".join(columns))
        is_long = f"length(request_id) > {LONGEST_ID} and is_text(request_id)"
        short = f"if({is_long}, 'sha256:' || sha256(request_id), request_id) as request_id"
        return texts.project(f"* replace ({short})")

    def _text_of(self, name: str, kind: str) -> str:
        """The SQL that gives a column of this type as text, or a line's number as it is."""
        kind = kind.strip('"')
        if name == "line":
            if _INTEGERS.fullmatch(kind):
                return "cast(line as bigint)"
            raise self._refused(f"gives {kind} as column line: pass it through from records")
        if kind == "NULL":
            return "cast(null as varchar)"
        if kind == "VARCHAR":
            return name
        if name in _AMOUNTS | _NUMBERS and _INTEGERS.fullmatch(kind):
            return f"cast({name} as varchar)"
        if name in _AMOUNTS and kind.startswith("DECIMAL"):
            return f"regexp_replace(cast({name} as varchar), '\\.0+$|(\\.[0-9]*[1-9])0+$', '\\1')"
        if name == "timestamp" and kind == "TIMESTAMP WITH TIME ZONE":
            return f"strftime({name}, '%Y-%m-%dT%H:%M:%S.%fZ')"
        inexact = "it is not exact: cast it to decimal(38, 30) and round it there, or give its text"
        hint = {
            "JSON": "write ->> instead of ->",
            "DOUBLE": inexact,
            "FLOAT": inexact,
            "TIMESTAMP": "it carries no time zone: make it a timestamptz",
        }.get(kind, "cast it to varchar")
        if name in _NUMBERS and kind != "JSON":
            hint = "cast it to bigint"
        raise self._refused(f"gives {kind} as column {name}: {hint}")

    # --- what it makes -------------------------------------------------------------------------------------------

    def requests_of(self, lines: Sequence[int] | pa.Array, records: pa.Array) -> pa.Table:
        """What the SQL makes of records (JSON, each by the number of its line): REQUESTS, in order of line.

        A record may become one request, several or none. Raises FormatRefused when it fails.
        """
        import duckdb  # noqa: PLC0415

        lines = lines if isinstance(lines, pa.Array) else pa.array(lines, pa.int64())
        if len(lines) > MOST_RECORDS:
            return self._in_halves(lines, records)
        try:
            requests = self._run(lines, records)
        except duckdb.InterruptException as error:
            raise self._refused(f"takes longer than {SECONDS:.0f} s for {len(lines):,} records") from error
        except duckdb.OutOfMemoryException as error:
            if len(lines) > 1:
                return self._in_halves(lines, records)
            if self._memory_bytes < LONG_LINE_BYTES:
                return self._with_more_memory(lines, records)
            line, most = lines[0].as_py(), LONG_LINE_BYTES >> 20
            raise self._refused(f"takes more than {most} MiB of memory for line {line}") from error
        except duckdb.Error as error:
            line = self._failing(lines, records)
            raise self._refused(f"fails at line {line}: {_without_values(error)}; try_cast gives null there") from error
        numbers = requests["line"].to_numpy()
        if not np.isin(numbers, lines.to_numpy()).all():
            raise self._refused("gives other numbers as column line than its records have: pass it through")
        in_order = bool((np.diff(numbers) >= 0).all())
        return requests if in_order else requests.take(pa.array(np.argsort(numbers, kind="stable")))

    def _in_halves(self, lines: pa.Array, records: pa.Array) -> pa.Table:
        half = len(lines) // 2
        return pa.concat_tables(
            [self.requests_of(lines[:half], records[:half]), self.requests_of(lines[half:], records[half:])]
        )

    def _run(self, lines: pa.Array, records: pa.Array) -> pa.Table:
        self._given.rows = _as_records(lines, records)
        interrupt = threading.Timer(SECONDS, self._connection.interrupt)
        interrupt.start()
        try:
            requests = self._connection.sql("execute requests_of_records").to_arrow_table()
        finally:
            interrupt.cancel()
        if len(requests) > MOST_REQUESTS:
            raise self._refused(f"makes more than {MOST_REQUESTS:,} requests of {len(lines):,} records")
        return requests.cast(REQUESTS)

    def _with_more_memory(self, lines: pa.Array, records: pa.Array) -> pa.Table:
        """As `requests_of`, in a database that is gone afterwards."""
        roomier = MappedRecords(self._format, LONG_LINE_BYTES)
        try:
            return roomier.requests_of(lines, records)
        finally:
            roomier.close()

    def _failing(self, lines: pa.Array, records: pa.Array) -> int:
        """The number of the first line that the SQL fails at, which it does."""
        import duckdb  # noqa: PLC0415

        while len(lines) > 1:
            half = len(lines) // 2
            try:
                self._run(lines[:half], records[:half])
                lines, records = lines[half:], records[half:]
            except duckdb.Error:
                lines, records = lines[:half], records[:half]
        return int(lines[0].as_py())


_JSON = pa.json_(pa.string())


def _as_records(lines: pa.Array, records: pa.Array) -> pa.Table:
    return pa.table({"line": lines, "record": pa.ExtensionArray.from_storage(_JSON, records)})


class _Given:
    """The records that the SQL sees at the moment."""

    def __init__(self) -> None:
        self.rows = _as_records(pa.array([], pa.int64()), pa.array([], pa.string()))

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.rows.__arrow_c_stream__(requested_schema)


def _nodes(tree: Any) -> Iterator[Mapping[str, Any]]:
    """Every node of a syntax tree."""
    if isinstance(tree, dict):
        yield tree
    for part in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _nodes(part)


def _ctes(node: Mapping[str, Any]) -> list[Any]:
    ctes = node.get("cte_map")
    return list(ctes["map"]) if isinstance(ctes, dict) else []


def _foreign(node: Mapping[str, Any], named: set[str], pure: set[str]) -> str | None:
    """What a node of a syntax tree reads that is no record."""
    kind = node.get("type")
    if kind == "BASE_TABLE":
        name = ".".join(node["qualified_name"]["path"])
        return None if name.lower() in named else f"the table {name}"
    if kind == "TABLE_FUNCTION":
        name = node["function"]["function_name"]
        return None if name.lower() in _TABLE_FUNCTIONS else f"the table function {name}"
    if kind == "SHOW_REF":
        return "the catalog"
    if node.get("class") in ("FUNCTION", "WINDOW"):
        name = node["function_name"]
        known = name.lower() in pure | _TABLE_FUNCTIONS or node.get("is_operator")
        why = "which there is not, or whose value depends on more than its arguments"
        return None if known else f"the function {name}, {why}"
    if kind == "COLUMN_REF" and _SPELLED_AS_COLUMNS.fullmatch(node["column_names"][-1]):
        return node["column_names"][-1]  # type: ignore[no-any-return]
    return None


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0][:300]


def _without_values(error: Exception) -> str:
    """What an error of the SQL says, without the values it happened to read: one may be somebody's key."""
    return re.sub(r"'[^']*'?|\"[^\"]*\"?", "'...'", _first_line(error))
