"""How much memory this process may use: what the machine has, or the lowest limit of its control groups."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

BESIDE_ENGINE_BYTES = 400 * 10**6  # that a process may take beside what the rollup engine is given
LEAST_ENGINE_BYTES = 128 * 10**6

# Above memory.high the kernel slows a process down until it hardly moves, so that is a limit as well.
_FILES = {"cgroup2": ("memory.max", "memory.high"), "cgroup": ("memory.limit_in_bytes",)}


def default_engine_bytes() -> int:
    """Return the default for the rollup engine: half of the memory, and no more than leaves room for the process."""
    memory = process_memory()
    return max(min(memory // 2, memory - BESIDE_ENGINE_BYTES), LEAST_ENGINE_BYTES)


def process_memory(proc: Path = Path("/proc/self")) -> int:
    """Return the bytes that this process may use. proc: what the kernel tells of the process."""
    memory: int = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([memory, *_limits(proc)])


def _limits(proc: Path) -> Iterator[int]:
    """Yield the limit of each control group that the process is in, and of all groups above it."""
    groups = _groups(_read(proc / "cgroup"))
    for mount in _mounts(_read(proc / "mountinfo")):
        group = groups.get(mount.kind)
        if group is None:
            continue
        folder = mount.folder_of(group)
        while True:
            for name in _FILES[mount.kind]:
                limit = _read(folder / name).strip()
                if limit.isdigit():  # not "max"
                    yield int(limit)
            if folder == mount.point:
                break
            folder = folder.parent


class _Mount(NamedTuple):
    """Where a hierarchy of control groups that limits memory is mounted. kind: cgroup2 or cgroup (version 1).

    root: the group that is seen at `point`: in a container often the container's own.
    """

    kind: str
    root: PurePosixPath
    point: Path

    def folder_of(self, group: PurePosixPath) -> Path:
        """Return the folder of a group; of one that cannot be seen from here, that of the highest that can."""
        if ".." in group.parts or not group.is_relative_to(self.root):
            return self.point
        return self.point / group.relative_to(self.root)


def _groups(text: str) -> dict[str, PurePosixPath]:
    """Return the group of the process in each version of control groups, from /proc/self/cgroup."""
    groups = {}
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if number == "0" and not controllers:
            groups["cgroup2"] = PurePosixPath(group)
        elif "memory" in controllers.split(","):
            groups["cgroup"] = PurePosixPath(group)
    return groups


def _mounts(text: str) -> Iterator[_Mount]:
    """Yield where control groups that limit memory are mounted, from /proc/self/mountinfo."""
    for line in text.splitlines():
        of_mount, _, of_system = line.partition(" - ")
        fields, system = of_mount.split(" "), of_system.split(" ")
        if len(fields) < 5 or len(system) < 3 or system[0] not in _FILES:
            continue
        if system[0] == "cgroup" and "memory" not in system[2].split(","):
            continue
        yield _Mount(system[0], PurePosixPath(_unescaped(fields[3])), Path(_unescaped(fields[4])))


def _unescaped(path: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
