"""The pages say what the code does."""

from __future__ import annotations

import json
import os
import re
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.contract.settings import Settings
from pipeline.contract.tables import PUBLISHED, Table
from pipeline.line import Reason
from serving.reference import openapi_document

ROOT = Path(__file__).parent.parent
BETWEEN_MARKERS = re.compile(r"(<!-- columns: .*? -->\n).*?(<!-- /columns -->)", re.DOTALL)


def columns_as_markdown(table: Table) -> str:
    """A table's heading, meaning and columns, as the README shows them."""
    lines = [
        f"### {table.name}",
        "",
        table.doc + (f" One row for each {', '.join(table.grain)}." if table.grain else ""),
        "",
        "| column | type | unit | merges by | meaning |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| `{column.name}` | {_type_name(column.type)} | {column.unit} | {column.merge} | {column.doc} |"
        for column in table.columns
    ]
    return "\n".join(lines)


def _type_name(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return f"list of {_type_name(kind.value_type)}"
    if pa.types.is_struct(kind):
        return ", ".join(f"{field.name} {_type_name(field.type)}" for field in kind)
    if pa.types.is_decimal(kind):
        return f"decimal({kind.precision}, {kind.scale})"
    return {"date32[day]": "date", "timestamp[us, tz=UTC]": "timestamp, UTC"}.get(str(kind), str(kind))


def test_the_column_tables_in_the_readme_are_those_of_the_schema() -> None:
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    tables = "\n\n".join(columns_as_markdown(table) for table in PUBLISHED.values())
    expected = BETWEEN_MARKERS.sub(lambda markers: f"{markers[1]}\n{tables}\n\n{markers[2]}", text)
    assert BETWEEN_MARKERS.search(text)
    if os.environ.get("KEYTALLY_WRITE_DOCS"):
        readme.write_text(expected, encoding="utf-8")
        return
    assert text == expected, "the schema changed: `make docs` writes the tables anew"


def test_the_openapi_document_is_checked_in_as_it_is_served() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    document = openapi_document(project["name"], project["version"], Settings.from_environment({}).currency)
    expected = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    page = ROOT / "docs/openapi.json"
    if os.environ.get("KEYTALLY_WRITE_DOCS"):
        page.write_text(expected, encoding="utf-8")
        return
    assert page.read_text(encoding="utf-8") == expected, "the API changed: `make docs` writes its document anew"


def test_every_setting_stands_in_the_readme_with_its_default() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    source = (ROOT / "pipeline/contract/settings.py").read_text(encoding="utf-8")
    for variable in set(re.findall(r"KEYTALLY_[A-Z_]+", source)):
        assert f"`{variable}`" in readme
    defaults = Settings.from_environment({})
    for shown in (str(defaults.data), defaults.currency, defaults.schedule):
        assert f"| `{shown}` |" in readme


def test_every_quarantine_reason_is_explained() -> None:
    formats = (ROOT / "docs/formats.md").read_text(encoding="utf-8")
    for reason in Reason:
        assert f"`{reason}`" in formats


@pytest.mark.parametrize("page", [*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md"), ROOT / "data/README.md"])
def test_every_link_between_the_pages_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_commands_of_dask_that_the_pages_name_exist_with_their_options() -> None:
    pytest.importorskip("distributed", reason="the extra keytally[dask] is not installed")
    page = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    typed = re.findall(r"^    (dask\b[^#\n]*)", page, re.MULTILINE)
    in_manifest = re.findall(r"args: \[(dask\b[^\]]*)\]", page)
    assert len(typed) == len(in_manifest) == 2
    for line in typed + in_manifest:
        program, command, *rest = line.replace(",", " ").split()
        assert entry_points(group="console_scripts", name=program), line
        (found,) = entry_points(group="dask_cli", name=command)
        options = {option for parameter in found.load().params for option in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= options, line
