"""Files of ours: told by where they lie below the data root."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.artifacts import verify
from pipeline.contract.store import FolderStore
from pipeline.errors import ArtifactDamaged


@pytest.mark.parametrize(
    "file",
    [
        "rejected/0-1.parquet",
        "events/day=2025-11-01/0-1.parquet",
        "rollups/rollup=file/part-1.parquet",
        "rollups/rollup=organization_day/month=2025-11/part-1.parquet",
    ],
)
def test_a_damaged_file_is_named_by_its_path_below_the_data_root(tmp_path: Path, file: str) -> None:
    with pytest.raises(ArtifactDamaged) as missing:
        verify(FolderStore(tmp_path), tmp_path / "rollups" / "data" / file)
    assert missing.value.artifact == file
