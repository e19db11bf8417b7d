"""Logs that producers really wrote are published with the numbers that their callers counted.

The samples are our own traffic with mock models. `make_litellm.py`, `make_otel.py` and `make_nginx.py` make them.
"""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest

from tests.producers.published import SAMPLES, assert_published_as_counted, read_expected

EXPECTED = sorted(SAMPLES.glob("*.expected.json"))
# What must not be in a sample: paths of a machine, tracebacks, keys.
PRIVATE = re.compile(rb'/(?:root|home|work|tmp|usr|opt)/|site-packages|File \\"|sk-[A-Za-z0-9]{16}')


def log_of(expected: Path) -> Path:
    """Return the log that a caller's count belongs to."""
    name = expected.name.removesuffix(".expected.json")
    (log,) = (path for path in (SAMPLES / f"{name}.jsonl", SAMPLES / f"{name}.jsonl.gz") if path.exists())
    return log


@pytest.mark.parametrize("expected", EXPECTED, ids=lambda path: path.name.removesuffix(".expected.json"))
def test_a_sample_is_published_with_its_callers_numbers(expected: Path, tmp_path: Path) -> None:
    assert_published_as_counted(tmp_path / "data", log_of(expected), read_expected(expected))


def test_every_producer_has_a_sample() -> None:
    names = " ".join(path.name for path in EXPECTED)
    for producer in ("litellm-proxy-", "otel-sdk-", "otel-openai-v2-", "otel-genai-anthropic-", "nginx-"):
        assert producer in names


@pytest.mark.parametrize("expected", EXPECTED, ids=lambda path: path.name.removesuffix(".expected.json"))
def test_a_sample_tells_nothing_of_the_machine_that_made_it(expected: Path) -> None:
    log = log_of(expected)
    content = gzip.decompress(log.read_bytes()) if log.suffix == ".gz" else log.read_bytes()
    assert not PRIVATE.search(content), PRIVATE.search(content)
    assert log.stat().st_size < 100_000
