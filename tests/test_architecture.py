"""Who may import whom, and what stands where."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = [ROOT / "cli.py", ROOT / "flows.py", *(ROOT / "pipeline").rglob("*.py"), *(ROOT / "serving").rglob("*.py")]


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def in_package(path: Path, *packages: str) -> bool:
    return any((ROOT / package) in path.parents for package in packages)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_in_the_agreed_direction(path: Path) -> None:
    for name in imports_of(path):
        top = name.partition(".")[0]
        assert not (top == "prefect" and path.name != "flows.py"), f"{name}: Prefect appears only in flows.py"
        assert not (top in ("fastapi", "starlette") and not in_package(path, "serving")), f"{name}: only in serving/"
        assert top not in ("cli", "flows"), f"{name}: nobody imports the entry points"
        assert not (top == "serving" and in_package(path, "pipeline")), f"{name}: the pipeline knows no server"
        if top == "pipeline" and in_package(path, "serving"):
            assert name.startswith("pipeline.contract"), f"{name}: serving imports the contract only"
        if top == "pipeline" and in_package(path, "pipeline/contract"):
            assert name.startswith("pipeline.contract"), f"{name}: the contract stands on its own"


RECOUNT = [ROOT / "pipeline/reconcile.py", ROOT / "pipeline/compare.py", *(ROOT / "pipeline").glob("recount*.py")]


def test_the_recount_has_nothing_of_the_intake_and_the_rollup() -> None:
    theirs = {"intake", "judge", "line", "rows", "records", "rollup", "update", "contents", "checks", "prices"}
    statements = set()
    for path in RECOUNT:
        imported = set(imports_of(path))
        assert not imported & {f"pipeline.{module}" for module in theirs}, path
        # Of raw.py the listing and no more: not the pass that hashes, inflates and splits.
        assert {found for found in imported if found.startswith("pipeline.raw.")} <= {
            "pipeline.raw.RawFile",
            "pipeline.raw.list_raw",
        }
        statements |= set(re.findall(r'engine\.(?:run|query|stream)\(f?"([^"]+)"', path.read_text()))
    assert statements == {
        "create_recounted_{made}",
        "add_recounted_{what}",
        "count_recounted_requests",
        "choose_recounted_part",
        "recounted_in_order",
        "differing_usage",
    }


@pytest.mark.parametrize("name", ["recount", "recount_lines", "recount_formats", "recount_otel", "recount_traces"])
def test_the_second_reading_of_raw_files_shares_no_code_with_the_first(name: str) -> None:
    imported = {found for found in imports_of(ROOT / f"pipeline/{name}.py") if found.startswith("pipeline.")}
    assert all(found.startswith("pipeline.recount") for found in imported), imported


def test_only_the_layout_spells_a_partition_folder() -> None:
    for path in SOURCES:
        if path.name != "layout.py":
            assert not re.search(r"[\"'f]\b(day|month|rollup)=", path.read_text(encoding="utf-8")), path


def test_only_the_entry_points_and_the_server_s_clock_ask_what_time_it_is() -> None:
    asking = {
        str(path.relative_to(ROOT))
        for path in SOURCES
        if re.search(r"datetime\.now\(|\.utcnow\(|\btime\.time\(|date\.today\(", path.read_text(encoding="utf-8"))
    }
    # The limiter compares moments of the Redis that it shares with other processes.
    assert asking <= {"cli.py", "flows.py", "serving/clock.py", "serving/limiter.py"}


def test_sql_stands_in_sql_files() -> None:
    for path in SOURCES:
        if in_package(path, "pipeline") and path.name != "engine.py":
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    assert not re.match(r"\s*(select|insert|copy|create|with)\s", node.value), f"{path}: {node.value}"


def test_only_the_store_asks_whether_it_is_a_folder_or_a_bucket() -> None:
    """Settings say which, `open_store` opens it, and `bucket` speaks to one; nobody else can tell."""
    telling = re.compile(r"obstore|s3://|S3Store|S3FileSystem|\bBucketStore\b|\bFolderStore\b|\bBucket\b|AWS_[A-Z]")
    knowing = {
        str(path.relative_to(ROOT))
        for path in SOURCES
        if any(telling.search(ast.unparse(node)) for node in _without_docstrings(path))
    }
    assert knowing == {f"pipeline/contract/{name}.py" for name in ("bucket", "settings", "store")}
    asking = {
        str(path.relative_to(ROOT))
        for path in SOURCES
        if re.search(r"isinstance\(([\w.]*(store|settings\.data)|data), ", path.read_text(encoding="utf-8"))
    }
    assert asking <= {"pipeline/contract/settings.py", "pipeline/contract/store.py"}


def _without_docstrings(path: Path) -> Iterator[ast.stmt]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else ():
            is_text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
            if isinstance(statement, ast.stmt) and not is_text and not hasattr(statement, "body"):
                yield statement


def loaded_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_the_server_imports_neither_prefect_nor_pandas_nor_dask_nor_duckdb() -> None:
    assert not loaded_by("import serving.app") & {"prefect", "pandas", "dask", "duckdb"}


def test_the_everyday_commands_import_neither_prefect_nor_pandas() -> None:
    loaded = loaded_by("import cli, pipeline.update, pipeline.status, pipeline.quarantine, serving.server")
    assert not loaded & {"prefect", "pandas", "dask"}
