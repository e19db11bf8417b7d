"""The first take-in of a month of raw logs: keytally beside scripts written for this one job, and beside the floor.

    python bench/rollup/bench.py [--requests 2000000] [--rounds 5] [--formats gz,zst,parquet] [--peers duckdb,polars]
                                 [--once pandas,pyspark] [--folder FOLDER] [--peers-python PYTHON] [--write]

The job: raw logs in; lines that are no requests left out; one of the copies of a request; exact sums for each
organization, key, model and day; Parquet out. Each script in peers/ does that and nothing else; keytally also keeps
what it read, says what is wrong with which line, checks its sums, rolls up months and organizations, and publishes them
durably.

All take turns within each round, each as a whole command in a fresh process. CPU is the command's own, with what it
waited for; it depends less than wall time on what else the machine does. Every answer is compared with the sums that
the generator kept (generate.py): one wrong row, and it is reported as wrong.

Runs in keytally's environment; --peers-python names one with requirements.txt installed. --once: measured in the first
round only. --folder: where logs are made and left for the next run. --write: the table goes into docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from measured import HERE, Cost, generate, link, machine, median, run, tell, versions
from measured import keytally as run_keytally

PEERS = ("duckdb", "polars", "pandas", "chdb", "pyspark")
SUFFIXES = {"gz": "jsonl.gz", "zst": "jsonl.zst", "parquet": "parquet"}
READ_COLUMNS = """
import sys, pyarrow.dataset as ds
columns = "request_id timestamp organization_id api_key_id cost synapses neurons model endpoint status"
columns += " input_tokens output_tokens"
files = ds.dataset(sys.argv[1], format="parquet")
print(sum(batch.num_rows for batch in files.to_batches(columns=columns.split())))
"""
FLOORS = {
    "gz": ("`zcat \\| wc -l`", ["sh", "-c", 'find "$1" -name "*.gz" | xargs zcat | wc -l', "sh"]),
    "zst": ("`zstd -dc \\| wc -l`", ["sh", "-c", 'find "$1" -name "*.zst" | xargs zstd -dcq | wc -l', "sh"]),
    "parquet": ("reading the columns", [sys.executable, "-c", READ_COLUMNS]),
}


class Contest:
    """All who take part, over one set of logs."""

    def __init__(self, folder: Path, scratch: Path, lines: int, peers_python: str) -> None:
        self.folder = folder
        self.scratch = scratch
        self.lines = lines
        self.peers_python = peers_python
        self.costs: dict[tuple[str, str], list[Cost]] = {}
        self.wrong: dict[tuple[str, str], str] = {}

    def turn(self, kind: str, who: str) -> None:
        """Let one have a turn with one format, and check the answer."""
        cost, wrong = getattr(self, who, self.peer)(self.folder / kind, who, kind)
        self.costs.setdefault((kind, who), []).append(cost)
        if cost.exit_code:
            wrong = f"failed: {(cost.said.splitlines() or ['nothing said'])[-1][:120]}"
        if wrong:
            self.wrong[kind, who] = wrong
        line = f"{kind:8} {who:9} {cost.cpu:7.2f} s CPU {cost.wall:7.2f} s {cost.peak:6.0f} MiB {wrong}"
        print(line, file=sys.stderr, flush=True)

    def floor(self, raw: Path, _: str, kind: str) -> tuple[Cost, str]:
        cost = run([*FLOORS[kind][1], str(raw)])
        return cost, "" if cost.said == str(self.lines) else f"{cost.said} lines"

    def keytally(self, raw: Path, who: str, kind: str) -> tuple[Cost, str]:
        data = self.scratch / f"{who}-{kind}"
        link(raw, data / "raw")
        cost = run_keytally(data, "rollup")
        wrong = self.checked(sorted((data / "rollups").glob("rollup=api_key_day/*/*.parquet")))
        shutil.rmtree(data)
        return cost, wrong

    def peer(self, raw: Path, who: str, kind: str) -> tuple[Cost, str]:
        answer = self.scratch / f"{who}-{kind}.parquet"
        cost = run([self.peers_python, str(HERE / "peers" / f"in_{who}.py"), str(raw), str(answer)])
        wrong = "" if cost.exit_code else self.checked([answer])
        answer.unlink(missing_ok=True)
        return cost, wrong

    def checked(self, answer: list[Path]) -> str:
        command = [sys.executable, str(HERE / "check.py"), str(self.folder / "truth.parquet"), *map(str, answer)]
        done = run(command)
        return done.said.splitlines()[-1] if done.exit_code else ""

    def table(self, kinds: list[str], takers: list[str]) -> str:
        """Medians over the rounds, and what they are beside the fastest right peer and the floor."""
        lines = [
            "| logs | who | CPU, s | least | × fastest right peer | × floor | wall, s | peak, MiB | turns | answer |",
            "|---|---|--:|--:|--:|--:|--:|--:|--:|---|",
        ]
        for kind in kinds:
            cpu = {who: median(self.costs[kind, who], "cpu") for who in takers}
            right = [cpu[who] for who in takers if who in PEERS and (kind, who) not in self.wrong]
            fastest = min(right, default=float("nan"))
            for who in takers:
                costs = self.costs[kind, who]
                name = FLOORS[kind][0] if who == "floor" else who
                answer = f"**wrong**: {self.wrong[kind, who]}" if (kind, who) in self.wrong else "right"
                least = min(cost.cpu for cost in costs)
                lines.append(
                    f"| {SUFFIXES[kind]} | {name} | {cpu[who]:.2f} | {least:.2f} | {cpu[who] / fastest:.2f}"
                    f" | {cpu[who] / cpu['floor']:.1f} | {median(costs, 'wall'):.1f} | {median(costs, 'peak'):.0f}"
                    f" | {len(costs)} | {'' if who == 'floor' and answer == 'right' else answer} |"
                )
        return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--formats", default=",".join(SUFFIXES))
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--once", default="")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--peers-python", default=sys.executable)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    kinds, once = options.formats.split(","), options.once.split(",")
    found = versions(options.peers_python, [peer for peer in options.peers.split(",") if peer])
    for peer, version in found.items():
        if version is None:
            print(f"skipped: {peer} cannot be imported by {options.peers_python}", file=sys.stderr)
    takers = ["keytally", *(peer for peer, version in found.items() if version), "floor"]
    begun = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="keytally-bench-", dir=options.folder) as made_here:
        scratch = Path(made_here)
        folder = (options.folder or scratch) / f"traffic-{options.requests}"
        facts = json.loads(generate(folder, "--requests", str(options.requests)))
        contest = Contest(folder, scratch, facts["lines"], options.peers_python)
        for number in range(options.rounds):
            for kind in kinds:
                for who in takers:
                    if number == 0 or who not in once:
                        contest.turn(kind, who)
    own = versions(sys.executable, ["duckdb", "pyarrow"])
    text = "\n\n".join(
        (
            f"{options.requests:,} requests in 60 files of 30 days, {facts['bytes'] / 2**20:,.0f} MiB as plain lines;"
            f" {facts['groups']:,} rows come out. {machine()}; load average {begun:.1f} before and"
            f" {os.getloadavg()[0]:.1f} after. keytally with {', '.join(f'{n} {v}' for n, v in own.items())}; peers:"
            f" {', '.join(f'{n} {v}' for n, v in found.items() if v)}.",
            contest.table(kinds, takers),
        )
    )
    tell(f"{options.requests} requests", text, write=options.write)


if __name__ == "__main__":
    main()
