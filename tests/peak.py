"""The most memory that this process has used."""

from __future__ import annotations

import re
from pathlib import Path


def kilobytes() -> int:
    """Resident memory at its peak since the program was started.

    Not ru_maxrss: that begins with the memory of the process that started this one.
    """
    found = re.search(r"VmHWM:\s*([0-9]+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found
    return int(found[1])
