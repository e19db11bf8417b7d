"""A DuckDB session: bounded by the settings, running statements from .sql files over named tables."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Hashable, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import pyarrow as pa

from pipeline.contract.seam import step
from pipeline.contract.settings import Settings
from pipeline.contract.store import Store
from pipeline.contract.tables import Table

if TYPE_CHECKING:
    import duckdb

_PACKAGE = Path(__file__).parent

# Row groups of published files are what a reader decodes for one organization; those of our own files are scanned.
POINT_READ_ROWS = 8_192
SCAN_ROWS = 122_880

# A cursor does not have them of its connection. The bar would be drawn on stdout, where the JSON document of a command
# is to stand alone.
SESSION = "set timezone = 'UTC'; set enable_progress_bar = false"


@cache
def statement(name: str) -> str:
    """The text of `name`.sql, below sql/ unless the name says otherwise, as "formats/native"."""
    folder = _PACKAGE if "/" in name else _PACKAGE / "sql"
    return (folder / f"{name}.sql").read_text(encoding="utf-8")


# Of the columns that came to a table later.
_SQL_TYPES = {pa.int64(): "bigint", pa.string(): "varchar", pa.bool_(): "boolean"}


class Closable(Protocol):
    """What is to be closed."""

    def close(self) -> None: ...


_Closable = TypeVar("_Closable", bound=Closable)


class _Rows:
    """What a named table holds at the moment. A statement that was planned keeps its plan when other rows come."""

    def __init__(self, rows: pa.Table) -> None:
        self.rows = rows

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.rows.__arrow_c_stream__(requested_schema)


class Engine:
    """One in-memory database, used by one thread. What it cannot hold in memory it keeps below `scratch`."""

    def __init__(self, settings: Settings, store: Store, scratch: Path) -> None:
        self._settings = settings
        self._store = store
        self._scratch = scratch
        self._named: dict[str, _Rows] = {}  # what name_arrow named
        self._views: dict[str, str] = {}  # what name_statement named, and the statement
        self._defined: set[str] = set()  # statements that define functions
        self._planned: set[str] = set()  # statements; their plans read the tables as they were named then
        self._lasting: dict[Hashable, Closable] = {}
        self._held = scratch / "held"  # a folder for each named table, with what it reads, where that is a copy

    @cached_property
    def _connection(self) -> duckdb.DuckDBPyConnection:
        """Opened by who needs it: a run with nothing new asks nothing, and does not wait for DuckDB to be loaded."""
        import duckdb  # noqa: PLC0415

        connection = duckdb.connect(
            config={
                "memory_limit": f"{self._settings.memory_limit}B",
                "threads": self._settings.threads,
                "temp_directory": str(self._scratch / "spilled"),
                "preserve_insertion_order": False,  # every file we write says its own order
                "enable_external_file_cache": False,  # it would hold on to every file ever read
                # What was freed goes back to the system at once, and not only where there is 128 MiB and more of it.
                "allocator_flush_threshold": "16MiB",
                "allocator_bulk_deallocation_flush_threshold": "16MiB",
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
                # Whatever lay in memory may stand in a block that is spilled, the text of rejected lines too. The key
                # is in memory alone. "Unsafe" is the source of its randomness: it is no secret from cryptanalysts.
                "force_mbedtls_unsafe": True,
                "temp_file_encryption": True,
            }
        )
        connection.execute(SESSION)
        return connection

    def close(self) -> None:
        for made in self._lasting.values():
            made.close()
        # An error's frames may keep the engine; a connection kept to the end is told as leaked.
        if opened := self.__dict__.pop("_connection", None):
            opened.close()

    def lasting(self, key: Hashable, make: Callable[[], _Closable]) -> _Closable:
        """What `make` makes, once for each key, to be closed with this engine and used by its thread."""
        if key not in self._lasting:
            self._lasting[key] = make()
        return self._lasting[key]  # type: ignore[return-value]  # whoever made it for this key

    def run(self, name: str, **parameters: object) -> None:
        """Run a statement for what it makes."""
        self._connection.execute(statement(name), parameters or None)

    def define(self, name: str) -> None:
        """Run a statement that defines functions for other statements, once."""
        if name not in self._defined:
            self.run(name)
            self._defined.add(name)

    def query(self, name: str, **parameters: object) -> list[tuple[Any, ...]]:
        """The rows of a statement."""
        return self._connection.execute(statement(name), parameters or None).fetchall()

    def arrow(self, name: str) -> pa.Table:
        """The rows of a statement without parameters, all at once. It stays planned until a table is named otherwise: a
        long one takes as long to plan as to run over ten thousand lines."""
        if name not in self._planned:
            self._connection.execute(f"prepare {name} as {statement(name)}")
            self._planned.add(name)
        return self._connection.sql(f"execute {name}").to_arrow_table()

    def stream(self, name: str, rows: int) -> pa.RecordBatchReader:
        """The rows of a statement, `rows` at a time; other statements may run meanwhile. It sees no named tables."""
        cursor = self._connection.cursor()
        cursor.execute(SESSION)
        return cursor.sql(statement(name)).to_arrow_reader(rows)

    def rows(self, name: str, rows: int) -> pa.RecordBatchReader:
        """The rows of a statement over named tables, `rows` at a time; no other statement may run meanwhile."""
        return self._connection.sql(statement(name)).to_arrow_reader(rows)

    def copy(self, name: str, path: Path, row_group_size: int, **parameters: object) -> int:
        """Write the rows of a statement, in its order, as one Parquet file; how many they are."""
        step("write a file in scratch")
        self._connection.execute(
            f"copy ({statement(name)}) to $path "
            f"(format parquet, compression zstd, parquet_version v2, row_group_size {row_group_size})",
            {**parameters, "path": str(path)},
        )
        ((rows,),) = self._connection.fetchall()
        return int(rows)

    def name_arrow(self, table: str, rows: pa.Table) -> None:
        """Let statements read `rows` as `table`, until the name is given anew."""
        named = self._named.get(table)
        if named and named.rows.schema == rows.schema:
            named.rows = rows
        else:
            self._named[table] = _Rows(rows)
            self._connection.register(table, self._named[table])
            self._planned.clear()

    def name_statement(self, table: str, name: str) -> None:
        """Let statements read the rows of another statement as `table`."""
        if self._views.get(table) != name:
            self._connection.execute(f"create or replace temp view {table} as {statement(name)}")
            self._views[table] = name
            self._planned.clear()

    def name_files(
        self,
        table: str,
        files: Sequence[Path],
        schema: Table,
        *,
        with_names: bool = False,
        where: str | None = None,
    ) -> None:
        """Let statements read Parquet files of one schema as `table`; no files are an empty table.

        with_names: a column `filename` says where each row is from. where: a condition in SQL, since a view takes no
        parameters, on columns of the files and on `file_row_number`, which then is a column of the table: other rows
        are left out, and row groups that have none but these are not read. A file from before its table had a column
        has there what the table says, or nulls.
        """
        self._connection.unregister(table)  # an empty table of before would hide the view
        self._named.pop(table, None)
        held = self._held / table
        shutil.rmtree(held, ignore_errors=True)
        if files:
            files = self._store.fetch_all(files, held)
            # The folders are named day=…: without the switch their names would stand in for the column.
            rows = self._connection.read_parquet(
                [str(file) for file in files],
                hive_partitioning=False,
                filename=with_names,
                file_row_number=where is not None,
                union_by_name=True,
            )
            if where is not None:
                rows = rows.filter(where)
            for field in schema.arrow_schema:
                if field.name not in rows.columns:
                    rows = rows.project(f"*, cast(null as {_SQL_TYPES[field.type]}) as {field.name}")
            for column in schema.columns:
                if column.absent is not None:
                    rows = rows.project(f"* replace (coalesce({column.name}, {column.absent}) as {column.name})")
            rows.create_view(table, replace=True)
        else:
            self._connection.register(table, schema.arrow_schema.empty_table())
