"""`read_usage`, and the page that shows what to ask with it."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline import read_usage
from pipeline.contract.store import StoreError
from pipeline.demo import write_traffic
from pipeline.errors import ArtifactDamaged, KeytallyError
from tests.conftest import Place, request
from tests.serving.traffic import publish, traffic

ROOT = Path(__file__).parent.parent
BLOCKS = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.DOTALL)
MEASURES = ["requests", "cost", "synapses", "neurons"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("usage") / "data")
    publish(place, traffic())
    return place


def counted(by: list[str], **wanted: str) -> dict[Any, list[Any]]:
    """The same sums, from the requests themselves."""
    rows = pd.DataFrame([record for record in traffic() if record["api_key_id"]])
    rows["day"] = pd.to_datetime(rows["timestamp"].str[:10])
    rows["month"] = pd.to_datetime(rows["timestamp"].str[:7] + "-01")
    rows["requests"] = 1
    for name in MEASURES[1:]:
        rows[name] = rows[name].fillna("0").map(Decimal) if name in rows else Decimal(0)
    for name, value in wanted.items():
        rows = rows[rows[name] == value]
    rows["model"] = rows["model"].astype(object).where(rows["model"].notna(), None)
    sums = rows.groupby([*by], dropna=False)[MEASURES].sum()
    return {_plain(key): list(row) for key, row in zip(sums.index, sums.itertuples(index=False), strict=True)}


def _plain(key: Any) -> tuple[Any, ...]:
    return tuple(None if isinstance(part, float) else part for part in key)


@pytest.mark.parametrize(
    ("by", "grain"),
    [
        ("day", ["organization_id", "day"]),
        ("month", ["organization_id", "month"]),
        ("key", ["organization_id", "day", "api_key_id"]),
        ("model", ["organization_id", "day", "model"]),
    ],
)
def test_a_data_frame_has_the_sums_of_the_requests_to_the_last_digit(place: Place, by: Any, grain: list[str]) -> None:
    for data in (place.layout.root, str(place.layout.root)):
        usage = read_usage(data, by=by)
        assert list(usage.columns[: len(grain) + 4]) == [*grain, "requests", "failed_requests", "cost", "synapses"]
        found = {
            _plain(tuple(row[:-4])): list(row[-4:])
            for row in usage[[*grain, *MEASURES]].itertuples(index=False, name=None)
        }
        assert found == counted(grain)
    assert usage["cost"].map(type).eq(Decimal).all()
    assert usage.attrs == {"version": 1, "as_of": place.now}


def test_an_organization_and_a_range_of_days_are_read_alone(place: Place) -> None:
    usage = read_usage(place.layout.root, "org_b", "2025-11-02", date(2025, 11, 5))
    assert set(usage["organization_id"]) == {"org_b"}
    assert set(usage["day"].dt.strftime("%m-%d")) <= {"11-02", "11-05"}
    everything = read_usage(place.layout.root, "org_b")
    asked = everything["day"].between("2025-11-02", "2025-11-05")
    assert usage.equals(everything[asked].reset_index(drop=True))
    assert read_usage(place.layout.root, "org_nobody").empty
    assert list(read_usage(place.layout.root, "org_nobody", by="month").columns[:2]) == ["organization_id", "month"]
    november = read_usage(place.layout.root, "org_b", "2025-11-01", "2025-11-30", by="month")
    assert len(november) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"by": "week"}, "must be one of day, month, key, model"),
        ({"first_day": "2025-11-02", "last_day": "2025-11-01"}, "before first_day"),
        ({"first_day": "2025-11-02", "by": "month"}, "whole months"),
        ({"first_day": "November"}, "isoformat"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(place: Place, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_usage(place.layout.root, **arguments)


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        read_usage(tmp_path / "nowhere")
    place = Place(tmp_path / "data")
    with pytest.raises(KeytallyError, match="nothing is published yet"):
        read_usage(place.layout.root)
    place.write_raw("a.jsonl", request(1))
    place.roll_up()
    (file,) = place.layout.rollups.rglob("rollup=organization_day/**/*.parquet")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + b"\0")
    with pytest.raises(ArtifactDamaged, match="its bytes are not those"):
        read_usage(place.layout.root)
    assert len(read_usage(place.layout.root, by="key")) == 1  # another file
    file.unlink()
    with pytest.raises(ArtifactDamaged, match="is missing"):
        read_usage(place.layout.root)
    file.write_bytes(whole)
    (place.layout.log / f"{place.publication().version:020d}.json").unlink()
    with pytest.raises(KeytallyError, match="the published table is gone"):
        read_usage(place.layout.root)


def test_an_older_table_in_the_place_of_a_newer_one_is_refused(tmp_path: Path) -> None:
    place = Place(tmp_path / "data")
    place.write_raw("a.jsonl", request(1))
    place.roll_up()
    place.write_raw("b.jsonl", request(2))
    place.roll_up()
    (place.layout.log / "00000000000000000002.json").unlink()
    with pytest.raises(KeytallyError, match="was published, but the log ends at version 1"):
        read_usage(place.layout.root)


def test_the_environment_s_data_root_and_settings_are_not_asked(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYTALLY_DATA", "/nowhere")
    monkeypatch.setenv("KEYTALLY_RATE_LIMIT", "nonsense")
    assert len(read_usage(place.layout.root, by="month"))


def test_who_imports_the_pipeline_pays_for_no_data_frame() -> None:
    code = "import sys, pipeline; assert not {'pandas', 'pyarrow', 'deltalake'} & set(sys.modules); pipeline.read_usage"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_page_on_notebooks_shows_what_its_code_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(tmp_path / "data")
    place.now = datetime(2025, 11, 15, 10, 30, tzinfo=UTC)
    write_traffic(place.layout.raw, place.now)
    place.roll_up()
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs/notebook.md"
    names: dict[str, Any] = {}

    def run(block: re.Match[str]) -> str:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), pd.option_context("display.width", 120, "display.max_columns", 20):
            exec(compile(block[1], str(page), "exec"), names)
        said = "\n".join(line.rstrip() for line in printed.getvalue().splitlines())
        return f"```python\n{block[1]}```\n\n```text\n{said}\n```\n"

    text = page.read_text(encoding="utf-8")
    shown = BLOCKS.sub(run, text)
    if os.environ.get("KEYTALLY_WRITE_DOCS"):
        page.write_text(shown, encoding="utf-8")
        return
    assert text == shown, "the page shows something else: `make docs` writes it anew"
