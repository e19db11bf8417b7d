"""The real server for half an hour, with everything going on at once, every answer checked.

    python bench/serving/soak.py [--minutes 30] [--rate 250] [--workers 2]

Meanwhile `keytally rollup` publishes new and corrected logs every 20 seconds, reading keys are made and revoked every
five, some organizations ask for more than they are granted, operators read everybody's usage, and errors are provoked.
Prints a report in Markdown; exits 1 when anything was wrong.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import http.client
import json
import os
import platform
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from http.client import HTTPMessage
from pathlib import Path

from running_model import REFRESH_SECONDS, USED_DAYS, Entry, Question, RunningModel, Sums, Version, now

from bench import ROOT, free_port, keytally

ORGANIZATIONS = [f"org_{number:03}" for number in range(300)]
GREEDY = [f"greedy_{number}" for number in range(3)]  # ask for more than they are granted
CHANGING, STILL, NEVER = "2025-11", "2025-12", "2025-10"  # months: with every publication, with the first, not at all
LIMIT, WINDOW = 600, 60  # requests of an organization, seconds
PUBLISH_EVERY, ROTATE_EVERY, LOOK_EVERY = 20.0, 5.0, 5.0  # seconds
PROMISED = 1.0  # seconds until every worker knows of a new or revoked key
MOST_FAULTS = 50  # that are told


@dataclass
class Heard:
    """An answer, and when it was asked for and there (seconds of the wall clock)."""

    status: int
    headers: HTTPMessage
    body: bytes
    asked: float
    answered: float

    @property
    def code(self) -> str:
        """What an error says that it is."""
        return str(json.loads(self.body)["error"]["code"]) if self.status >= 400 and self.body else ""


class Client:
    """A kept-alive connection, opened anew now and then, so that each worker gets its part."""

    def __init__(self, port: int, requests: int = 200) -> None:
        self.port, self.requests = port, requests
        self.left = 0
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def ask(self, target: str, key: str | None = None, method: str = "GET", **headers: str) -> Heard:
        """The answer."""
        if not self.left:
            self.connection.close()
            self.left = self.requests
        self.left -= 1
        sent = {name.replace("_", "-"): value for name, value in headers.items()} | ({"X-API-Key": key} if key else {})
        asked = now()
        self.connection.request(method, target, headers=sent)
        answer = self.connection.getresponse()
        body = answer.read()
        heard = Heard(answer.status, answer.headers, body, asked, now())
        if answer.headers.get("Connection") == "close":
            self.left = 0
        return heard


class Soak:
    """What goes on, and what was seen."""

    def __init__(self, data: Path, port: int, rate: float) -> None:
        self.data, self.port, self.rate = data, port, rate
        self.environment = {
            **os.environ,
            "KEYTALLY_DATA": str(data),
            "KEYTALLY_RATE_LIMIT": f"{LIMIT}/minute",
            "KEYTALLY_REFRESH_SECONDS": str(REFRESH_SECONDS),
        }
        self.model = RunningModel()
        self.keys: dict[str, tuple[str, str]] = {}  # of each organization: the key, and its id
        self.operators: list[str] = []
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.faults: list[str] = []
        self.counts: Counter[str] = Counter()
        self.seconds: dict[str, list[float]] = defaultdict(list)  # latencies and delays, by what took them
        self.logged: dict[str, list[tuple[Entry, str]]] = {}  # of each raw file: what it holds, and the request ids
        self.workers: list[int] = []

    # What is published

    def write_log(self, file: str, entries: list[tuple[Entry, str]]) -> None:
        """Put a raw file in place."""
        path = self.data / "raw" / f"_{file}"
        with path.open("w", encoding="utf-8") as log:
            for entry, request_id in entries:
                for number in range(entry.sums.requests):
                    cost = entry.sums.cost if number == 0 else Decimal(0)
                    record = {
                        "request_id": f"{request_id}-{number}",
                        "timestamp": f"{entry.month}-{entry.day:02}T{number % 24:02}:00:00Z",
                        "organization_id": entry.organization,
                        "api_key_id": entry.key,
                        "model": entry.model,
                        "cost": f"{cost:f}",
                        "synapses": f"{entry.sums.synapses if number == 0 else 0:f}",
                        "neurons": f"{entry.sums.neurons if number == 0 else 0:f}",
                    }
                    log.write(json.dumps(record) + "\n")
        path.rename(path.with_name(file))

    def some_entries(
        self, organizations: list[str], months: list[str], count: int, seed: int
    ) -> list[tuple[Entry, str]]:
        """Requests that were never made before, `count` entries of each organization, for the next version."""
        chance = random.Random(seed)
        days = USED_DAYS if count > 10 else chance.sample(USED_DAYS, 5)
        found = []
        for organization in organizations:
            for number in range(count):
                sums = Sums(
                    chance.randint(1, 3),
                    Decimal(chance.randrange(10**12)).scaleb(-12),
                    Decimal(chance.randrange(10**9)).scaleb(-6),
                    Decimal(chance.randrange(10**9)).scaleb(-6),
                )
                entry = Entry(
                    version=len(self.model.versions) + 1,
                    organization=organization,
                    month=months[number % len(months)],
                    day=chance.choice(days),
                    key=f"key_{chance.randint(1, 4)}",
                    model=chance.choice(["mini", "large", None]),
                    sums=sums,
                )
                found.append((entry, f"{seed}-{organization}-{number}"))
        return found

    def publish(self, number: int) -> None:
        """New requests, or every fifth time other costs for some that are published; then a rollup."""
        version = len(self.model.versions) + 1
        file = f"{number:05}.jsonl"
        if number == 0:
            entries = self.some_entries([*ORGANIZATIONS, *GREEDY], [CHANGING, STILL], 60, number)
            changed = [entry for entry, _ in entries]
        elif number % 5 == 0 and f"{number - 1:05}.jsonl" in self.logged:
            file = f"{number - 1:05}.jsonl"
            before = self.logged[file]
            more = Decimal("0.000000000001") * number
            entries = [(one._replace(sums=one.sums._replace(cost=one.sums.cost + more)), name) for one, name in before]
            changed = [entry._replace(version=version, sums=Sums(cost=more)) for entry, _ in before]
        else:
            some = random.Random(number).sample(ORGANIZATIONS, 20)
            entries = self.some_entries([*some, GREEDY[0]], [CHANGING], 4, number)
            changed = [entry for entry, _ in entries]
        self.logged[file] = entries
        for entry in changed:
            self.model.entries[entry.organization].append(entry)
        self.model.versions.append(Version(now(), frozenset(entry.month for entry in changed)))
        begun = time.perf_counter()
        self.write_log(file, entries)
        (report,) = keytally(self.environment, "rollup")
        self.model.versions[-1].ended = now()
        self.seconds["rollup"].append(time.perf_counter() - begun)
        self.expect(report.get("version") == version, f"the rollup published {report}, not version {version}")

    def publishing(self) -> None:
        """A publication every so often."""
        number = 0
        while not self.stop.wait(PUBLISH_EVERY - (self.seconds["rollup"][-1] if number else 0)):
            number += 1
            self.publish(number)

    # Who asks

    def ordinary(self, number: int, clients: int) -> None:
        """Ordinary organizations, and at times somebody who has something wrong."""
        chance = random.Random(-number)
        client = Client(self.port)
        kept: dict[tuple[str, Question], tuple[str, bytes]] = {}
        due = time.perf_counter()
        while not self.stop.is_set():
            due += clients / self.rate
            time.sleep(max(0.0, due - time.perf_counter()))
            due = max(due, time.perf_counter() - 1)  # what it fell behind by more than a second is given up
            organization = chance.choice(ORGANIZATIONS)
            if chance.random() < 0.03:
                self.provoke(client, chance, organization)
                continue
            question = some_question(chance, self.model.keys_of(organization))
            key = self.keys[organization][0]
            self.ask("ordinary", client, chance, organization, question, key, kept)

    def operating(self) -> None:
        """Operators, who read everybody's usage, as often as one key may."""
        chance = random.Random(17)
        client = Client(self.port)
        while not self.stop.wait(0.15):
            organization = chance.choice(ORGANIZATIONS)
            question = some_question(chance, self.model.keys_of(organization))
            self.ask("operator", client, chance, organization, question, chance.choice(self.operators), {})

    def overdoing(self, organization: str) -> None:
        """An organization that asks 20 times a second and is granted 10 at most."""
        chance = random.Random(organization)
        client = Client(self.port, requests=100)
        granted: deque[tuple[float, float]] = deque()
        while not self.stop.wait(0.05):
            key = self.keys[organization][0]
            heard = self.ask("greedy", client, chance, organization, Question("summary", CHANGING), key, {})
            if heard.status == 429:
                wait = int(heard.headers["Retry-After"])
                well = 1 <= wait <= WINDOW + 1 and heard.headers["RateLimit-Remaining"] == "0"
                self.expect(well and heard.code in ("RATE_LIMIT_EXCEEDED", ""), f"a 429 with {dict(heard.headers)}")
            else:
                granted.append((heard.asked, heard.answered))
                while granted[0][0] < heard.answered - WINDOW:
                    granted.popleft()
                self.expect(len(granted) <= LIMIT, f"{organization} was granted {len(granted)} in {WINDOW} s")

    def ask(
        self,
        who: str,
        client: Client,
        chance: random.Random,
        organization: str,
        question: Question,
        key: str,
        kept: dict[tuple[str, Question], tuple[str, bytes]],
    ) -> Heard:
        """Ask in one of several ways, and check the answer."""
        headers = {"Accept_Encoding": chance.choice(["gzip", "identity"])}
        if question.csv:
            headers["Accept"] = "text/csv"
        tag, known = kept.get((organization, question), ("", b""))
        if tag and chance.random() < 0.5:
            headers["If_None_Match"] = tag
        method = "HEAD" if chance.random() < 0.05 else "GET"
        target = question.target(organization)
        heard = client.ask(target, key, method, **headers)
        self.tell(who, heard)
        if heard.status == 429 and who == "greedy":
            return heard
        what = f"{method} {target} for {who}"
        if heard.status == 304:
            body = known
            self.expect("If_None_Match" in headers and not heard.body, f"{what}: 304 unasked, or with a body")
        elif heard.status != 200:
            self.expect(False, f"{what}: {heard.status} {heard.body.decode()[:200]}")
            return heard
        elif method == "HEAD":
            self.expect(not heard.body and int(heard.headers["Content-Length"]) > 0, f"{what}: not as HEAD is")
            return heard
        else:
            body = gzip.decompress(heard.body) if heard.headers.get("Content-Encoding") == "gzip" else heard.body
            tag = heard.headers.get("ETag", "")
            right_tag = f'"{hashlib.sha256(heard.body).hexdigest()[:32]}"' if question.month != NEVER else ""
            self.expect(tag == right_tag, f"{what}: the tag is {tag}, not {right_tag}")
            if tag:
                kept[organization, question] = (tag, body)
        right = question.is_right(body, self.model, organization, heard.asked, heard.answered)
        self.expect(right, f"{what}: asked {heard.asked}, got {heard.status} {body.decode()[:300]}")
        self.expect(self.is_as_of(heard), f"{what}: as of {heard.headers.get('X-Data-As-Of')}")
        self.count("answers checked")
        return heard

    def is_as_of(self, heard: Heard) -> bool:
        """Whether X-Data-As-Of is the start of an acceptable version's run."""
        moment = datetime.fromisoformat(heard.headers["X-Data-As-Of"]).timestamp()
        runs = [self.model.versions[number - 1] for number in self.model.acceptable(heard.asked, heard.answered)]
        return any(int(run.begun) <= moment <= run.ended for run in runs)

    def provoke(self, client: Client, chance: random.Random, organization: str) -> None:
        """Something that is refused."""
        key = self.keys[organization][0]
        target = Question("daily", CHANGING).target(organization)
        other = Question("daily", CHANGING).target("org_of_somebody_else")
        unknown = Question("usage", CHANGING, key="key_nobody").target(organization)
        asked, sent, status, code = chance.choice(
            [
                (target, None, 401, "AUTHENTICATION_REQUIRED"),
                (target, "kt_" + "x" * 43, 401, "INVALID_API_KEY"),
                (other, key, 403, "ORGANIZATION_ACCESS_DENIED"),
                (unknown, key, 404, "API_KEY_NOT_FOUND"),
                (target + "&fill=one", key, 400, "INVALID_REQUEST"),
                (target.replace("month=11", "month=13"), key, 400, "INVALID_REQUEST"),
                ("/v1/analytics", key, 404, "NOT_FOUND"),
            ]
        )
        heard = client.ask(asked, sent)
        self.tell("refused", heard)
        self.expect((heard.status, heard.code) == (status, code), f"{asked}: {heard.status} {heard.code}, not {code}")

    # Keys

    def rotating(self) -> None:
        """New keys for old: every worker must know of each within the promised time."""
        chance = random.Random(5)
        while not self.stop.wait(ROTATE_EVERY):
            organization = chance.choice(ORGANIZATIONS)
            old, old_id = self.keys[organization]
            clients = self.one_to_each()
            (made,) = keytally(self.environment, "keys", "create", "--org", organization)
            self.learnt("created", clients, made["key"], organization, (200, ""))
            self.keys[organization] = (made["key"], made["id"])
            time.sleep(2)  # whoever still asks with the old one is answered
            keytally(self.environment, "keys", "revoke", old_id)
            self.learnt("revoked", clients, old, organization, (401, "API_KEY_DEACTIVATED"))
            for client in clients:
                client.connection.close()

    def learnt(self, what: str, clients: list[Client], key: str, organization: str, expected: tuple[int, str]) -> None:
        """Ask each worker until it knows; note how long after the end of the command it was last asked in vain."""
        begun = time.perf_counter()
        target = Question("summary", STILL).target(organization)
        for client in clients:
            in_vain = 0.0
            while in_vain < 5 * PROMISED:
                sent = time.perf_counter() - begun
                heard = client.ask(target, key)
                if (heard.status, heard.code) == expected:
                    break
                in_vain = sent
                time.sleep(0.02)
            self.note(what, in_vain)
            self.expect(in_vain <= PROMISED, f"a key {what} {in_vain:.2f} s before is not known to a worker")

    def one_to_each(self) -> list[Client]:
        """A connection to each worker."""
        found: dict[int, Client] = {}
        while len(found) < len(self.workers):
            client = Client(self.port)
            client.ask("/healthz")
            worker = self.worker_of(client)
            if worker is None or worker in found:
                client.connection.close()
            else:
                found[worker] = client
        return list(found.values())

    def worker_of(self, client: Client) -> int | None:
        """The process that accepted a connection."""
        ours = f":{client.connection.sock.getsockname()[1]:04X}"
        rows = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()]
        inodes = {f"socket:[{row[9]}]" for row in rows if row[2].endswith(ours)}
        for worker in self.workers:
            for link in Path(f"/proc/{worker}/fd").iterdir():
                try:
                    if str(link.readlink()) in inodes:
                        return worker
                except FileNotFoundError:  # closed meanwhile
                    continue
        return None

    # What is seen

    def looking(self) -> None:
        """What operators' machines ask."""
        client = Client(self.port)
        while not self.stop.wait(LOOK_EVERY):
            self.expect(client.ask("/healthz").status == 200, "not healthy")
            ready = client.ask("/readyz")
            versions = self.model.acceptable(ready.asked, ready.answered)
            self.expect(
                ready.status == 200 and json.loads(ready.body)["version"] in versions, f"/readyz: {ready.body!r}"
            )
            metrics = client.ask("/metrics").body.decode()
            failed = re.findall(r'^keytally_requests_total\{.*status="(?:5..|none)"\} (\S+)', metrics, re.M)
            self.expect(not any(float(value) for value in failed), f"{failed} 5xx or unanswered requests by /metrics")

    def tell(self, who: str, heard: Heard) -> None:
        """Count an answer."""
        with self.lock:
            self.counts[f"{who} {heard.status}"] += 1
            self.seconds[who].append(heard.answered - heard.asked)

    def note(self, what: str, seconds: float) -> None:
        with self.lock:
            self.seconds[what].append(seconds)

    def count(self, what: str) -> None:
        with self.lock:
            self.counts[what] += 1

    def expect(self, right: bool, otherwise: str) -> None:
        """Count and keep what is wrong."""
        if not right:
            with self.lock:
                self.counts["faults"] += 1
                if len(self.faults) < MOST_FAULTS:
                    self.faults.append(otherwise)
                    print(f"FAULT {otherwise}", file=sys.stderr, flush=True)

    def guarded(self, act: Callable[[], None]) -> threading.Thread:
        """A thread that does something until it is over; what it dies of is a fault."""

        def run() -> None:
            try:
                act()
            except Exception as error:
                self.expect(False, "".join(traceback.format_exception(error)))

        thread = threading.Thread(target=run)
        thread.start()
        return thread


def some_question(chance: random.Random, keys: list[str]) -> Question:
    """Any of all that may be asked; the plain month the most often."""
    month = chance.choices([CHANGING, STILL, NEVER], [80, 17, 3])[0]
    kind = chance.choices(["daily", "summary", "usage", "top"], [70, 10, 10, 10])[0]
    if kind == "usage":
        return Question(kind, month, key=chance.choice(keys))
    if kind == "top":
        return Question(kind, month, limit=chance.choice([1, 2, 10, 100]))
    if kind == "summary" or chance.random() < 0.5:
        return Question(kind, month)
    return Question(
        kind,
        month,
        coverage=chance.random() < 0.4,
        fill=chance.random() < 0.3,
        key=chance.choice(keys) if chance.random() < 0.3 else None,
        group_by=chance.choice([None, "api_key", "model"]),
        csv=chance.random() < 0.2,
    )


def resident(process: int) -> float:
    """MiB of memory."""
    return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{process}/status").read_text(encoding="ascii"))[0]) / 1024


def workers_of(process: int) -> list[int]:
    """The processes that serve."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="ascii").split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def percentiles(seconds: list[float]) -> str:
    """Median, 99th and 99.9th percentile and most, in ms, as cells."""
    cuts = statistics.quantiles(seconds, n=1000)
    median, p99, p999, most = (value * 1e3 for value in (cuts[499], cuts[989], cuts[998], max(seconds)))
    return f"{median:.1f} | {p99:.1f} | {p999:.1f} | {most:.0f}"


def report(soak: Soak, memory: list[list[float]], warm: int, step: float, log: str) -> str:
    """What is written down.

    memory: MiB of each worker, by steps of `step` minutes; flat from the step `warm` on, one hopes. log: the server's.
    """
    statuses: Counter[str] = Counter()
    for name, count in soak.counts.items():
        if name[-3:].isdigit():
            statuses[name[-3:]] += count
    rollups = soak.seconds["rollup"][1:]
    failed, errors = (len(re.findall(pattern, log)) for pattern in (r'"status": ?5', r'"level": ?"error"'))
    lines = [
        f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.system()}; {len(memory)} workers; load"
        f" average at the end {os.getloadavg()[2]:.1f}",
        "",
        f"- answers: {', '.join(f'{count:,} × {status}' for status, count in sorted(statuses.items()))}",
        f"- {soak.counts['answers checked']:,} of them checked against the running model",
        f"- {len(rollups)} publications, median {statistics.median(rollups):.1f} s, most {max(rollups):.1f} s",
    ]
    for what in ("created", "revoked"):
        looks = soak.seconds[what]
        lines.append(
            f"- keys {what}: a worker was last asked in vain {max(looks):.2f} s after the command at most,"
            f" {statistics.quantiles(looks, n=20)[18]:.2f} s in 95 of 100 cases ({len(looks)} looks)"
        )
    lines += [
        f"- in the server's log: {failed} 5xx, {errors} lines of level error",
        f"- faults: {soak.counts['faults']}",
        "",
        "| who | answers | median, ms | p99 | p99.9 | most |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for who in ("ordinary", "operator", "greedy", "refused"):
        lines.append(f"| {who} | {len(soak.seconds[who]):,} | {percentiles(soak.seconds[who])} |")
    lines += [
        "",
        f"| worker | MiB at the start | after {warm * step:.0f} min | at the end | most since | slope, MiB an hour |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for number, sizes in enumerate(memory, 1):
        flat = sizes[warm:]
        slope = statistics.linear_regression([place * step / 60 for place in range(len(flat))], flat).slope
        lines.append(f"| {number} | {sizes[0]:.0f} | {flat[0]:.0f} | {flat[-1]:.0f} | {max(flat):.0f} | {slope:+.0f} |")
    lines += ["", *(" ".join(f"{size:.0f}" for size in sizes) for sizes in memory)]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=float, default=250, help="requests a second of ordinary organizations")
    parser.add_argument("--clients", type=int, default=6, help="connections of ordinary organizations")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="keytally-soak-") as folder:
        data, log = Path(folder) / "data", Path(folder) / "server.log"
        (data / "raw").mkdir(parents=True)
        soak = Soak(data, free_port(), options.rate)
        soak.publish(0)
        organizations = [*ORGANIZATIONS, *GREEDY]
        soak.model.names = {(name, f"key_{key}"): f"{name}, key {key}" for name in organizations for key in (1, 2)}
        rows = (f'{name},{key},"{title}"\n' for (name, key), title in soak.model.names.items())
        (data / "key_names.csv").write_text("organization_id,api_key_id,name\n" + "".join(rows), encoding="utf-8")
        (Path(folder) / "organizations").write_text("\n".join(organizations), encoding="utf-8")
        for made in keytally(soak.environment, "keys", "create", "--orgs", f"{folder}/organizations"):
            soak.keys[made["organization_id"]] = (made["key"], made["id"])
        soak.operators = [keytally(soak.environment, "keys", "create", "--operator")[0]["key"] for _ in range(2)]
        serve = [sys.executable, str(ROOT / "cli.py"), "serve", f"--port={soak.port}", f"--workers={options.workers}"]
        with (
            log.open("w") as stderr,
            subprocess.Popen(serve, env=soak.environment, stderr=stderr) as server,
        ):
            while server.poll() is None and len(workers_of(server.pid)) < options.workers:
                time.sleep(0.1)
            time.sleep(5)  # until each listens
            soak.workers = workers_of(server.pid)
            for client in soak.one_to_each():
                client.connection.close()
            threads = [
                *(soak.guarded(lambda n=n: soak.ordinary(n, options.clients)) for n in range(options.clients)),  # type: ignore[misc]
                *(soak.guarded(lambda who=who: soak.overdoing(who)) for who in GREEDY),  # type: ignore[misc]
                *(soak.guarded(act) for act in (soak.operating, soak.publishing, soak.rotating, soak.looking)),
            ]
            step = min(1.0, options.minutes / 12)  # minutes between two looks at the memory
            looks = round(options.minutes / step)
            memory: dict[int, list[float]] = {worker: [resident(worker)] for worker in soak.workers}
            for look in range(1, looks + 1):
                time.sleep(step * 60)
                for worker, sizes in memory.items():
                    sizes.append(resident(worker))
                sizes_now = " ".join(f"{sizes[-1]:.0f}" for sizes in memory.values())
                said = f"{sum(soak.counts.values()):,} counted, {soak.counts['faults']} faults, {sizes_now} MiB"
                print(f"{look * step:.1f} min: {said}", file=sys.stderr, flush=True)
            soak.expect(workers_of(server.pid) == soak.workers, "a worker was replaced by another")
            soak.stop.set()
            for thread in threads:
                thread.join()
            server.send_signal(signal.SIGTERM)
            soak.expect(server.wait(40) == 0, f"the server ended with {server.returncode}")
        print(report(soak, list(memory.values()), looks // 6, step, log.read_text(encoding="utf-8")))
    for fault in soak.faults:
        print(f"FAULT {fault}")
    return bool(soak.faults)


if __name__ == "__main__":
    sys.exit(main())
