"""A log of LiteLLM's proxy taken in through its format, beside `zcat | wc -l` of the same files.

    python bench/rollup/formats.py [--records 80000] [--files 8] [--rounds 5] [--folder FOLDER] [--write]

The records are those that LiteLLM wrote for the tests, 12 KB each, with ids, times, keys and prompts of their own. Both
take turns within each round, each as a whole command in a fresh process: keytally starts, takes in, rolls up, checks
and publishes. Both use the machine as they like. The promise: at least half the bytes a second.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

from measured import ROOT, Cost, link, machine, median, must, run, tell
from measured import keytally as run_keytally

GENUINE = ROOT / "tests" / "cases" / "litellm" / "log.jsonl"
WORDS = ("ledger", "sum", "exact", "month", "key", "token", "request", "price", "day", "usage", "version", "file")


def write_log(folder: Path, records: int, files: int) -> int:
    """LiteLLM's records as gzipped files; their plain size in bytes. Each counts: the same seed, the same bytes."""
    chance = random.Random(12)
    genuine = [json.loads(line) for line in GENUINE.read_text(encoding="utf-8").splitlines()]
    genuine = [record for record in genuine if record["metadata"]["user_api_key_org_id"]]
    folder.mkdir(parents=True)
    size = 0
    for file in range(files):
        with gzip.open(folder / f"{file:03}.jsonl.gz", "wb", compresslevel=6) as log:
            for number in range(records // files):
                record = dict(genuine[number % len(genuine)])
                record["id"] = f"chatcmpl-{chance.getrandbits(128):032x}"
                record["trace_id"] = f"{chance.getrandbits(128):032x}"
                record["startTime"] = 1_761_955_200 + chance.random() * 30 * 86_400
                record["metadata"] = {**record["metadata"], "user_api_key_hash": f"{chance.randrange(500):064x}"}
                prompt = " ".join(f"{chance.choice(WORDS)}{chance.randrange(1000)}" for _ in range(120))
                record["messages"] = [{"role": "user", "content": prompt}]
                line = json.dumps(record).encode() + b"\n"
                size += len(line)
                log.write(line)
    return size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=80_000)
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    os.environ["KEYTALLY_CURRENCY"] = "USD"  # in which LiteLLM reckons
    costs: dict[str, list[Cost]] = {"keytally": [], "zcat": []}
    with tempfile.TemporaryDirectory(prefix="keytally-bench-", dir=options.folder) as made_here:
        scratch = Path(made_here)
        size = write_log(scratch / "log", options.records, options.files)
        count = options.records // options.files * options.files
        for _ in range(options.rounds):
            cost = must(run(["sh", "-c", 'find "$1" -name "*.gz" | xargs zcat | wc -l', "sh", str(scratch / "log")]))
            assert cost.said == str(count), cost.said
            costs["zcat"].append(cost)
            data = scratch / "data"
            link(scratch / "log", data / "raw" / "litellm")
            costs["keytally"].append(cost := run_keytally(data, "rollup"))
            taken = sum(file["accepted"] for file in json.loads(cost.said.splitlines()[-1])["ingested"])
            assert taken == count, taken
            shutil.rmtree(data)
            print(f"{costs['zcat'][-1].wall:6.2f} s zcat, {cost.wall:6.2f} s keytally", file=sys.stderr, flush=True)
    lines = ["| what | MB/s | CPU, s | wall, s | peak, MiB | turns |", "|---|--:|--:|--:|--:|--:|"]
    for name, shown in (("keytally", "keytally rollup"), ("zcat", "`zcat \\| wc -l`")):
        wall = median(costs[name], "wall")
        lines.append(
            f"| {shown} | {size / 10**6 / wall:.0f} | {median(costs[name], 'cpu'):.2f} | {wall:.2f}"
            f" | {median(costs[name], 'peak'):.0f} | {options.rounds} |"
        )
    shares = sorted(zcat.wall / own.wall for zcat, own in zip(costs["zcat"], costs["keytally"], strict=True))
    text = (
        f"{count:,} records of LiteLLM in {options.files} gzipped files, {size / 10**6:,.0f} MB as plain lines,"
        f" {size / count / 1000:.1f} KB each. {machine()}; load average {load:.1f} before and {os.getloadavg()[0]:.1f}"
        f" after.\n\n"
        + "\n".join(lines)
        + f"\n\nkeytally takes in {shares[len(shares) // 2]:.2f} of the bytes a second"
        f" that `zcat | wc -l` reads, {shares[0]:.2f} to {shares[-1]:.2f} in one round."
    )
    tell("a mapped log", text, write=options.write)


if __name__ == "__main__":
    main()
