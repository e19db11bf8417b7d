"""Which memory limit holds for a process: that of any control group above it, in both versions of control groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.contract import memory, settings
from pipeline.contract.memory import default_engine_bytes, process_memory

MB = 10**6
MANY = 2**62  # what version 1 says for no limit


def _escaped(path: Path) -> str:
    return str(path).replace(" ", r"\040")


class Kernel:
    """What the kernel tells of a process and its control groups."""

    def __init__(self, folder: Path) -> None:
        self.proc = folder / "proc"
        self.sys = folder / "sys fs" / "cgroup"  # a space is escaped in mountinfo
        self.proc.mkdir()

    def tell(self, cgroup: str, *mounts: tuple[str, str, Path, str]) -> None:
        """cgroup: text of /proc/self/cgroup. mounts: type, root, point and options of each."""
        (self.proc / "cgroup").write_text(cgroup)
        lines = [
            f"{number} 1 0:{number} {root} {_escaped(point)} rw,nosuid - {kind} {kind} {options}"
            for number, (kind, root, point, options) in enumerate(mounts, 30)
        ]
        (self.proc / "mountinfo").write_text("\n".join(["1 1 0:1 / / rw - ext4 /dev/sda rw", *lines]) + "\n")

    def limit(self, group: str, name: str, limit: int | str) -> None:
        folder = self.sys / group
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{limit}\n")

    def memory(self) -> int:
        return process_memory(self.proc)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """A machine of 8 GB."""
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 8000 * MB // 4096}
    monkeypatch.setattr(memory.os, "sysconf", pages.__getitem__)
    return Kernel(tmp_path)


def test_without_control_groups_it_is_the_machine_s_memory(kernel: Kernel) -> None:
    assert kernel.memory() == 8000 * MB
    kernel.tell("")
    assert kernel.memory() == 8000 * MB


@pytest.mark.parametrize("limited", ["system.slice/keytally.service", "system.slice", ""])
def test_in_version_2_every_group_above_counts(kernel: Kernel, limited: str) -> None:
    """systemd's MemoryMax= of a service or a slice."""
    kernel.tell("0::/system.slice/keytally.service\n", ("cgroup2", "/", kernel.sys, "rw"))
    for group in ("system.slice/keytally.service", "system.slice"):
        kernel.limit(group, "memory.max", "max")
    assert kernel.memory() == 8000 * MB
    kernel.limit(limited, "memory.max", 600 * MB)
    assert kernel.memory() == 600 * MB


def test_in_version_2_the_limit_above_which_a_process_is_slowed_counts(kernel: Kernel) -> None:
    kernel.tell("0::/a\n", ("cgroup2", "/", kernel.sys, "rw"))
    kernel.limit("a", "memory.max", 900 * MB)
    kernel.limit("a", "memory.high", 700 * MB)
    assert kernel.memory() == 700 * MB


@pytest.mark.parametrize("limited", ["batch/job", "batch", ""])
def test_in_version_1_every_group_above_counts(kernel: Kernel, limited: str) -> None:
    kernel.tell(
        "9:name=systemd:/other\n4:cpu,memory:/batch/job\n0::/unlimited\n",
        ("cgroup", "/", kernel.sys.with_name("cpuset"), "rw,cpuset"),
        ("cgroup", "/", kernel.sys, "rw,cpu,memory"),
    )
    for group in ("batch/job", "batch", ""):
        kernel.limit(group, "memory.limit_in_bytes", MANY)
    assert kernel.memory() == 8000 * MB
    kernel.limit(limited, "memory.limit_in_bytes", 600 * MB)
    assert kernel.memory() == 600 * MB


@pytest.mark.parametrize("group", ["/docker/abc", "/docker/other", "/../../elsewhere"])
def test_a_container_sees_its_own_group_at_the_top(kernel: Kernel, group: str) -> None:
    """Also where its own group is named as seen from outside, or cannot be seen."""
    kernel.tell(f"0::{group}\n", ("cgroup2", "/docker/abc", kernel.sys, "rw"))
    kernel.limit("", "memory.max", 600 * MB)
    assert kernel.memory() == 600 * MB


@pytest.mark.parametrize(("had", "given"), [(8000, 4000), (800, 400), (600, 200), (300, 128)])
def test_the_default_leaves_room_for_the_process_itself(monkeypatch: pytest.MonkeyPatch, had: int, given: int) -> None:
    monkeypatch.setattr(memory, "process_memory", lambda: had * MB)
    assert default_engine_bytes() == given * MB
    assert settings.Settings.from_environment({}).memory_limit == given * MB
