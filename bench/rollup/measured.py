"""Running whole commands in fresh processes, and telling what each cost.

Only the standard library, and not much of it: a process begins with the peak memory of the one that started it.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PAGE = ROOT / "docs" / "performance.md"


@dataclass(frozen=True)
class Cost:
    """What a command and the processes it waited for used: CPU and wall seconds, MiB of the largest of them.

    written: MiB of blocks given to the file system, those of files that were soon deleted too.
    """

    cpu: float
    wall: float
    peak: float
    written: float
    exit_code: int
    said: str


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Cost:
    """Run a command to its end."""
    with tempfile.TemporaryFile() as said:
        actions = [(os.POSIX_SPAWN_DUP2, said.fileno(), 1), (os.POSIX_SPAWN_DUP2, said.fileno(), 2)]
        begun = time.perf_counter()
        pid = os.posix_spawnp(command[0], list(command), {**os.environ, **(environment or {})}, file_actions=actions)
        _, status, usage = os.wait4(pid, 0)
        wall = time.perf_counter() - begun
        said.seek(0)
        text = said.read().decode(errors="replace").strip()
    cpu = usage.ru_utime + usage.ru_stime
    written = usage.ru_oublock * 512 / 2**20
    return Cost(cpu, wall, usage.ru_maxrss / 1024, written, os.waitstatus_to_exitcode(status), text)


def must(cost: Cost) -> Cost:
    """The cost of a command that did what it was to do. Exits with what it said otherwise."""
    if cost.exit_code:
        sys.exit(f"a command failed with {cost.exit_code}:\n{cost.said[-2000:]}")
    return cost


def keytally(data: Path, *arguments: str) -> Cost:
    """One command of keytally over a data root. It may have findings: some copies in the made-up logs disagree."""
    cost = run([sys.executable, str(ROOT / "cli.py"), *arguments, "--json"], {"KEYTALLY_DATA": str(data)})
    return must(replace(cost, exit_code=0) if cost.exit_code == 3 else cost)


def generate(folder: Path, *arguments: str) -> str:
    """Make traffic, unless it lies there; its facts as JSON."""
    print(f"making {folder.name} ...", file=sys.stderr)
    return must(run([sys.executable, str(HERE / "generate.py"), str(folder), *arguments])).said


def link(files: Path, raw: Path) -> None:
    """Let files lie below another folder too."""
    for file in files.rglob("*.*"):
        to = raw / file.relative_to(files)
        to.parent.mkdir(parents=True, exist_ok=True)
        to.hardlink_to(file)


def median(costs: Sequence[Cost], name: str) -> float:
    return float(statistics.median(getattr(cost, name) for cost in costs))


def machine() -> str:
    """What this ran on, in a line."""
    facts = Path("/proc/cpuinfo").read_text(encoding="ascii").splitlines()
    processor = next((line.partition(": ")[2] for line in facts if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores of {processor}, {memory:.0f} GiB, Linux, Python {platform.python_version()}"


def versions(python: str, packages: Sequence[str]) -> dict[str, str | None]:
    """The versions of packages in a Python's environment, None where one cannot be imported."""
    found: dict[str, str | None] = {}
    for name in packages:
        asked = [python, "-c", f"import {name}, importlib.metadata as m; print(m.version('{name}'))"]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        found[name] = None if done.returncode else done.stdout.strip().splitlines()[-1]
    return found


def tell(name: str, text: str, *, write: bool, of: str = "rollup", page: Path = PAGE) -> None:
    """Print a part of the report; with `write`, put it into the page, in place of the part of that name.

    of: the part of the page that it belongs to, which ends with `<!-- /of -->`.
    """
    print(text)
    if not write:
        return
    begin, end, end_of_page_part = f"<!-- {of}: {name} -->", f"<!-- /{of}: {name} -->", f"<!-- /{of} -->"
    whole = page.read_text(encoding="utf-8")
    part = f"{begin}\n\n{text}\n\n{end}"
    if begin in whole:
        before, _, rest = whole.partition(begin)
        whole = before + part + rest.partition(end)[2]
    else:
        before, found, after = whole.partition(end_of_page_part)
        if not found:
            sys.exit(f"{page} has no line {end_of_page_part}")
        whole = f"{before}{part}\n\n{found}{after}"
    page.write_text(whole, encoding="utf-8")
