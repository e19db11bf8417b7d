"""Settings: read once from the environment, checked, then passed in."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

from pipeline.contract.memory import LEAST_ENGINE_BYTES, default_engine_bytes

_T = TypeVar("_T")


class SettingsError(ValueError):
    """A setting that cannot be used. `str()` of it names the variable and what it may be, in one line."""

    def __init__(self, variable: str, value: str, expected: str) -> None:
        shown = re.sub("//[^/@]*@", "//…@", value)  # the password of a URL
        super().__init__(f"{variable} is {shown!r}, but must be {expected}")
        self.variable = variable
        self.value = value
        self.expected = expected

    def __reduce__(self) -> tuple[type[SettingsError], tuple[str, str, str]]:
        # Sent from a worker or kept by Prefect, it is made anew: by itself, it would be made from its sentence.
        return type(self), (self.variable, self.value, self.expected)


@dataclass(frozen=True)
class RateLimit:
    """At most `amount` requests in every `seconds` seconds."""

    amount: int
    seconds: int


@dataclass(frozen=True)
class Address:
    """Where to listen."""

    host: str
    port: int


@dataclass(frozen=True)
class Bucket:
    """A data root in a bucket: everything whose key begins with `prefix` and a slash, or everything where it is empty.

    endpoint: the store's URL, None for AWS. Keys that are None are looked for where AWS's own tools look, as in the
    role of a machine.
    """

    name: str
    prefix: str
    endpoint: str | None
    region: str
    access_key_id: str | None = dataclasses.field(repr=False)
    secret_access_key: str | None = dataclasses.field(repr=False)
    session_token: str | None = dataclasses.field(repr=False)

    def __str__(self) -> str:
        return f"s3://{self.name}" + (f"/{self.prefix}" if self.prefix else "")


@dataclass(frozen=True)
class Settings:
    """Everything a deployment can choose.

    data: the data root, a folder or a bucket. cache: with a bucket, the folder for copies of what lies there and for
    what is not finished. cache_size: bytes of copies that stay. keys: the registry of reading keys. schedule: cron line
    of the nightly flow, UTC. rate_limit: None when switched off. refresh_seconds: a server sees a publication within
    this time. answer_cache: bytes of finished answers that a server process keeps. metrics: where /metrics is served;
    None: where everything else is. keep_alive: seconds for which a server keeps an idle connection open.
    rejected_limit: percent of a log's lines that may be rejected before the log is a finding. memory_limit: bytes the
    rollup engine may use. dask: address of the scheduler over whose workers a run's steps are fanned out. dask_lost:
    what is done where it does not answer, `fail` or `local`.
    """

    data: Path | Bucket
    cache: Path
    cache_size: int
    keys: Path
    currency: str
    schedule: str
    rate_limit: RateLimit | None
    rate_limit_store: str | None
    refresh_seconds: float
    answer_cache: int
    metrics: Address | None
    keep_alive: int
    rejected_limit: Decimal
    memory_limit: int
    threads: int
    dask: str | None
    dask_lost: str

    def for_a_worker(self) -> Settings:
        """What another machine is told: all but what is secret, and a folder by its whole path."""
        if isinstance(self.data, Bucket):
            data: Path | Bucket = dataclasses.replace(
                self.data, access_key_id=None, secret_access_key=None, session_token=None
            )
        else:
            data = self.data.absolute()
        return dataclasses.replace(self, data=data, rate_limit_store=None, dask=None)

    def on_this_machine(self, environment: Mapping[str, str]) -> Settings:
        """The same where the data root is a bucket, with what a machine's own environment says of keys and cache.

        Raises SettingsError for a value of these that cannot be used.
        """
        if not isinstance(self.data, Bucket):
            return self
        data = dataclasses.replace(
            self.data,
            access_key_id=environment.get("AWS_ACCESS_KEY_ID") or None,
            secret_access_key=environment.get("AWS_SECRET_ACCESS_KEY") or None,
            session_token=environment.get("AWS_SESSION_TOKEN") or None,
        )
        cache, cache_size = _cache(environment)
        return dataclasses.replace(self, data=data, cache=cache, cache_size=cache_size)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """The settings in `environment` (default: the process's own); an empty variable counts as unset.

        Raises SettingsError for the first value that cannot be used.
        """
        given = os.environ if environment is None else environment

        read = partial(_read, given)
        data = cast(
            "Path | Bucket",
            read(
                "KEYTALLY_DATA",
                "data",
                lambda value: _data_root(value, given),
                "the path of a folder, or s3://bucket/prefix",
            ),
        )
        in_bucket = isinstance(data, Bucket)
        cache, cache_size = _cache(given)
        return cls(
            data=data,
            cache=cache,
            cache_size=cache_size,
            keys=read(
                "KEYTALLY_KEYS",
                "" if isinstance(data, Bucket) else str(data / "keys.sqlite"),
                _folder,
                "the path of a file on this machine" + (", also where the data root is in a bucket" * in_bucket),
            ),
            currency=read("KEYTALLY_CURRENCY", "CHF", _currency, "a currency code of three capital letters, as CHF"),
            schedule=read(
                "KEYTALLY_SCHEDULE", "30 0 * * *", _cron, "a cron line of five fields (UTC), as '30 0 * * *'"
            ),
            rate_limit=read(
                "KEYTALLY_RATE_LIMIT",
                "100/minute",
                _rate_limit,
                "a count per second, minute, hour or day, as '100/minute', or 'off'",
            )[0],
            rate_limit_store=read(
                "KEYTALLY_RATE_LIMIT_STORE", " ", _redis_url, "a Redis URL, as redis://localhost:6379/0"
            )[0],
            refresh_seconds=read(
                "KEYTALLY_REFRESH_SECONDS", "10" if in_bucket else "1", _seconds, "a number of seconds from 0.1 to 3600"
            ),
            answer_cache=read("KEYTALLY_ANSWER_CACHE", "64MiB", _size_from(10**6), "a size of at least 1MB, as 64MiB"),
            metrics=read("KEYTALLY_METRICS", " ", _address, "a host and a port, as 127.0.0.1:9100")[0],
            keep_alive=read(
                "KEYTALLY_KEEP_ALIVE", "75", _whole_seconds, "a whole number of seconds from 1 to 3600, as 75"
            ),
            rejected_limit=read(
                "KEYTALLY_REJECTED_LIMIT", "10%", _percent, "a share of a log's lines from 0% to 100%, as 10% or 2.5%"
            ),
            memory_limit=read(
                "KEYTALLY_MEMORY_LIMIT",
                f"{default_engine_bytes()}B",
                _size_from(LEAST_ENGINE_BYTES),
                "a size of at least 128MB, as 4GB or 512MiB",
            ),
            threads=read("KEYTALLY_THREADS", str(_cores()), _threads, "a whole number from 1 to 1024"),
            dask=read("KEYTALLY_DASK", " ", _scheduler, "the address of a Dask scheduler, as tcp://10.0.0.5:8786")[0],
            dask_lost=read(
                "KEYTALLY_DASK_LOST",
                "fail",
                lambda value: value if value in ("fail", "local") else None,
                "'fail', or 'local' to go on with this machine alone",
            ),
        )


# What the clients of a bucket would read by themselves, beside what says who we are and where it is.
_ONLY_OURS = """
AWS_ALLOW_INVALID_CERTIFICATES AWS_CHECKSUM_ALGORITHM AWS_CONDITIONAL_PUT AWS_CONNECT_TIMEOUT AWS_COPY_IF_NOT_EXISTS
AWS_DISABLE_BULK_DELETE AWS_DISABLE_TAGGING AWS_ENDPOINT AWS_ENDPOINT_URL_S3 AWS_PROXY_URL AWS_REQUEST_PAYER
AWS_S3_ALLOW_UNSAFE_RENAME AWS_S3_EXPRESS AWS_S3_LOCKING_PROVIDER AWS_SERVER_SIDE_ENCRYPTION AWS_SKIP_SIGNATURE
AWS_SSE_BUCKET_KEY_ENABLED AWS_SSE_CUSTOMER_KEY_BASE64 AWS_SSE_KMS_KEY_ID AWS_TIMEOUT AWS_TOKEN AWS_UNSIGNED_PAYLOAD
AWS_VIRTUAL_HOSTED_STYLE_REQUEST
"""
# The words for true and false that clients take for AWS_ALLOW_HTTP. Other tools need the variable for a URL that begins
# with http://; keytally looks at the URL.
_YES, _NO = ("true", "1", "yes", "on", "t", "y"), ("false", "0", "no", "off", "f", "n")
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_CRON_FIELDS = (range(60), range(24), range(1, 32), range(1, 13), range(8))
_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}


def _read(
    given: Mapping[str, str], variable: str, default: str, parse: Callable[[str], _T | None], expected: str
) -> _T:
    value = given.get(variable) or default
    parsed = parse(value)
    if parsed is None:
        wrong = misspelling_of(value)
        raise SettingsError(variable, value, f"{expected}; {wrong}" if wrong else expected)
    return parsed


def misspelling_of(value: str) -> str | None:
    """What a shell was to make of a value and did not, with what to do; None if there is nothing of that kind.

    A file of settings that is read by a service manager or by Docker is read by no shell.
    """
    if value[:1] in ("'", '"') or value[-1:] in ("'", '"'):
        return "the quotation marks are part of the value; write it without them"
    if value.startswith("~"):
        return "nothing has expanded '~'; write the whole path"
    if re.search(r"\$[A-Za-z_{(]|%[A-Za-z_]+%", value):
        return "nothing has expanded the variable in it; write the whole path"
    return None


def _cache(given: Mapping[str, str]) -> tuple[Path, int]:
    """The folder for copies of what lies in a bucket, and the bytes of them that stay."""
    here = str(_home() / ".cache" / "keytally")
    return (
        _read(given, "KEYTALLY_CACHE", here, _folder, "the path of a folder on this machine"),
        _read(given, "KEYTALLY_CACHE_SIZE", "4GiB", _size_from(10**6), "a size of at least 1MB, as 4GiB"),
    )


def _folder(value: str) -> Path | None:
    # "s3://bucket" would otherwise become a folder "s3:" in the working directory, without a word.
    return None if not value or "://" in value or "\0" in value else Path(value)


def _data_root(value: str, given: Mapping[str, str]) -> Path | Bucket | None:
    return _bucket(value, given) if value.startswith("s3://") else _folder(value)


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # somebody without one
        return Path("/var/tmp") / f"keytally-{os.getuid()}"


def _bucket(value: str, given: Mapping[str, str]) -> Bucket | None:
    """A bucket, and how to reach it. Raises SettingsError for what AWS's own variables say wrong."""
    match = re.fullmatch(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/?((?:[A-Za-z0-9_.=-]+/?)*)", value)
    if match is None or {".", ".."} & set(match[2].split("/")):
        return None
    endpoint = given.get("AWS_ENDPOINT_URL") or None
    if endpoint and not re.fullmatch(r"https?://[^/@\s]+/?", endpoint):
        raise SettingsError(
            "AWS_ENDPOINT_URL",
            endpoint,
            "the URL of a store that speaks S3, as https://s3.example.com; keys stand in variables of their own",
        )
    _check_allow_http(given.get("AWS_ALLOW_HTTP") or None, endpoint)
    for variable in _ONLY_OURS.split():
        if given.get(variable):
            raise SettingsError(variable, given[variable], "left unset: keytally says itself how it speaks to a store")
    key, secret = (given.get(f"AWS_{name}") or None for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"))
    if bool(key) != bool(secret):
        missing = "AWS_SECRET_ACCESS_KEY" if key else "AWS_ACCESS_KEY_ID"
        raise SettingsError(missing, "", "given when the other of the two is")
    return Bucket(
        name=match[1],
        prefix=match[2].rstrip("/"),
        endpoint=endpoint and endpoint.rstrip("/"),
        region=given.get("AWS_REGION") or given.get("AWS_DEFAULT_REGION") or "us-east-1",
        access_key_id=key,
        secret_access_key=secret,
        session_token=given.get("AWS_SESSION_TOKEN") or None,
    )


def _check_allow_http(value: str | None, endpoint: str | None) -> None:
    """Accept AWS_ALLOW_HTTP where the endpoint does not contradict it. Raises SettingsError otherwise."""
    if value is None or value.lower() in _YES:
        return
    if value.lower() not in _NO:
        raise SettingsError("AWS_ALLOW_HTTP", value, "true or false")
    if endpoint and endpoint.startswith("http://"):
        raise SettingsError("AWS_ALLOW_HTTP", value, "true or unset where AWS_ENDPOINT_URL begins with http://")


def _currency(value: str) -> str | None:
    return value if re.fullmatch(r"[A-Z]{3}", value) else None


def _cron(value: str) -> str | None:
    fields = value.split()
    if len(fields) != len(_CRON_FIELDS):
        return None
    for field, allowed in zip(fields, _CRON_FIELDS, strict=True):
        # The numbers only: what else a cron line may say is for the scheduler to know.
        numbers = re.findall(r"[0-9]+", re.sub(r"/[0-9]+", "", field))
        if not re.fullmatch(r"[A-Za-z0-9*,/#-]+", field) or any(int(number) not in allowed for number in numbers):
            return None
    return " ".join(fields)


def _rate_limit(value: str) -> tuple[RateLimit | None] | None:
    if value == "off":
        return (None,)
    match = re.fullmatch(r"([1-9][0-9]{0,8})/(second|minute|hour|day)", value)
    return (RateLimit(int(match[1]), _SECONDS[match[2]]),) if match else None


def _redis_url(value: str) -> tuple[str | None] | None:
    if not value.strip():
        return (None,)
    return (value,) if re.match(r"rediss?://.", value) else None


def _scheduler(value: str) -> tuple[str | None] | None:
    if not value.strip():
        return (None,)
    return (value,) if re.fullmatch(r"(?:tcp|tls)://[^\s/]+:[0-9]{1,5}", value) else None


def _seconds(value: str) -> float | None:
    if not re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,6})?", value):
        return None
    seconds = float(value)
    return seconds if 0.1 <= seconds <= 3600 else None


def _whole_seconds(value: str) -> int | None:
    return int(value) if re.fullmatch(r"[0-9]{1,4}", value) and 1 <= int(value) <= 3600 else None


def _percent(value: str) -> Decimal | None:
    match = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,6})?) ?%", value)
    percent = Decimal(match[1]) if match else Decimal(-1)
    return percent if 0 <= percent <= 100 else None


def _address(value: str) -> tuple[Address | None] | None:
    if not value.strip():
        return (None,)
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):([0-9]{1,5})", value)
    if match is None or int(match[2]) > 65_535:
        return None
    return (Address(match[1].strip("[]"), int(match[2])),)


def _size_from(least: int) -> Callable[[str], int | None]:
    def parse(value: str) -> int | None:
        match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,3})?) ?([KMGT]?i?B)", value, re.IGNORECASE)
        size = int(float(match[1]) * _UNITS.get(match[2].upper(), 0)) if match else 0
        return size if size >= least else None

    return parse


def _threads(value: str) -> int | None:
    return int(value) if re.fullmatch(r"[0-9]{1,4}", value) and 1 <= int(value) <= 1024 else None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
