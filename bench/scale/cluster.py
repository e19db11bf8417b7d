"""A run over a Dask scheduler and so many workers, all on this machine, as one command: it waits for all it started.

    python -m bench.scale.cluster WORKERS ARGUMENTS

Workers have one thread and 2 GB each. ARGUMENTS are those of keytally.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
WORKER = ("--nthreads", "1", "--memory-limit", "2GB", "--no-nanny", "--no-dashboard")


def main() -> None:
    workers, *arguments = sys.argv[1:]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    address = f"tcp://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="keytally-dask-") as folder:
        commands = [["scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard"]]
        commands += [["worker", address, *WORKER, "--local-directory", folder] for _ in range(int(workers))]
        started = [
            subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.dask_{name}", *options],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for name, *options in commands
        ]
        try:
            environment = {**os.environ, "KEYTALLY_DASK": address}
            done = subprocess.run([sys.executable, str(ROOT / "cli.py"), *arguments], env=environment, check=False)
        finally:
            for process in reversed(started):
                process.terminate()
            for process in started:
                process.wait()
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
