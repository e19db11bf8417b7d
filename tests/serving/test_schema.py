"""Schemathesis asks the live server what its OpenAPI document allows and what it does not, with all of its checks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from serving.routes import USAGE
from tests.conftest import Place
from tests.serving.conftest import NOW, LiveServer, settings_for
from tests.serving.traffic import KEYS, publish, traffic

# No check is off and no operation left out, but that only one has rows; what a check takes for granted and our rules
# settle is told to it here. Three checks have nothing to look at in an API that only reads: use_after_free,
# ensure_resource_availability and object_level_authorization want something that was made, deleted or listed.
CONFIGURATION = """
continue-on-failure = true

[cache]
enabled = false

[warnings]
fail-on = {fruitful}  # a run that is refused everywhere, or knows no key, finds nothing

[generation]
database = "none"

[auth.openapi.{header}]
api_key = "${{READING_KEY}}"

[headers]
Accept = "{accept}"

# As in the traffic; the rest of the values are made up, and mostly nobody's.
[dictionaries]
organizations = {{ values = {organizations} }}
keys = {{ values = {keys} }}
years = {{ values = [2025] }}
months = {{ values = [10, 11] }}
tags = {{ values = ["*"] }}

[parameters]
"path.org_id" = {{ dictionary = "organizations", probability = 0.8 }}
"path.api_key_id" = {{ dictionary = "keys", probability = 0.8 }}
"query.api_key_id" = {{ dictionary = "keys", probability = 0.5 }}
"path.year" = {{ dictionary = "years", probability = 0.7 }}
"path.month" = {{ dictionary = "months", probability = 0.7 }}
"query.year" = {{ dictionary = "years", probability = 0.7 }}
"query.month" = {{ dictionary = "months", probability = 0.7 }}
"header.If-Match" = {{ dictionary = "tags", probability = 0.9 }}

# Narrower than what is taken for granted, which lets 5xx pass. 403: another organization than the key's own. 404: a
# key that the organization never used. 412: If-Match and If-Unmodified-Since may well not hold.
[checks]
positive_data_acceptance.expected-statuses = [{allowed}]
negative_data_rejection.expected-statuses = [400, 401, 403, 404, 405, 429]

[[operations]]
include-path = "{usage}"
checks.positive_data_acceptance.expected-statuses = [404, {allowed}]
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Traffic of two organizations in two months, published by the pipeline."""
    place = Place(tmp_path_factory.mktemp("schema") / "data")
    publish(place, traffic())
    names = "organization_id,api_key_id,name\norg_a,key_a,Prod\norg_b,key_a,größer\n"
    (place.layout.root / "key_names.csv").write_text(names, encoding="utf-8")
    return place.layout.root


def ask(
    server: LiveServer,
    folder: Path,
    key: str,
    arguments: list[str],
    *,
    header: str = "X-API-Key",
    accept: str = "*/*",
    organizations: tuple[str, ...] = ("org_a",),
    allowed: str = "200, 304, 403, 412",
    fruitful: bool = True,
    phases: tuple[str, ...] = ("Examples", "Coverage", "Fuzzing", "Stateful"),
) -> None:
    """Fails with what a run finds.

    allowed: the statuses of a good question. fruitful: most questions must get past the gate. phases: those to run.
    """
    configuration = folder / "schemathesis.toml"
    configuration.write_text(
        CONFIGURATION.format(
            header=header,
            accept=accept,
            organizations=list(organizations),
            keys=list(KEYS),
            allowed=allowed,
            usage=USAGE,
            fruitful=str(fruitful).lower(),
        ),
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(configuration), "run"]
    options = [f"{server.url}/openapi.json", "--checks", "all", "--no-color", "--phases", ",".join(phases).lower()]
    run = subprocess.run(
        [*command, *options, *arguments],
        cwd=folder,
        env={**os.environ, "READING_KEY": key},
        capture_output=True,
        text=True,
        check=False,
    )
    passed = {line.split()[-1] for line in run.stdout.splitlines() if line.startswith("  ✅ ")}
    if run.returncode or not passed >= set(phases):
        pytest.fail(run.stdout + run.stderr, pytrace=False)


# The same questions each time: a change that breaks nothing must not fail by chance.
FEW = ["--max-examples", "30", "--seed", "1"]
MANY = ["--max-time", "75"]

few_and_many = pytest.mark.parametrize(
    "arguments", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"]
)


@few_and_many
def test_with_a_reading_key(data: Path, tmp_path: Path, arguments: list[str]) -> None:
    with LiveServer(settings_for(data, KEYTALLY_RATE_LIMIT="1000000/minute")) as server:
        ask(server, tmp_path, server.create_key("org_a").key, arguments)


@few_and_many
def test_with_an_operator_s_key_in_the_other_header(data: Path, tmp_path: Path, arguments: list[str]) -> None:
    with LiveServer(settings_for(data)) as server:
        key = server.keys.create_operator(now=NOW).key
        everybody = ("org_a", "org_b", "org_nobody")
        ask(server, tmp_path, key, arguments, header="Api-Key", organizations=everybody, allowed="200, 304, 412")


@few_and_many
def test_as_rows(data: Path, tmp_path: Path, arguments: list[str]) -> None:
    with LiveServer(settings_for(data)) as server:
        key = server.create_key("org_a").key
        only = ["--include-operation-id", "daily"]
        phases = ("Examples", "Coverage", "Fuzzing")
        ask(server, tmp_path, key, [*arguments, *only], accept="text/csv", phases=phases)


@few_and_many
def test_beyond_the_rate_limit(data: Path, tmp_path: Path, arguments: list[str]) -> None:
    with LiveServer(settings_for(data, KEYTALLY_RATE_LIMIT="100/hour")) as server:
        key = server.create_key("org_a").key
        ask(server, tmp_path, key, arguments, allowed="200, 304, 403, 412, 429", fruitful=False)
