"""Every table keytally writes, declared once.

The Arrow schema, the schema check before a commit and the README's column table come from here; the SQL spells the
columns out once more, and a test holds it to the grain and the merges declared here. What has no honest merge (an
average, a percentile) is not stored.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

DAY = pa.date32()
INSTANT = pa.timestamp("us", tz="UTC")
COST = pa.decimal128(18, 12)  # one request: below 1,000,000, at most 12 decimals
UNITS = pa.decimal128(18, 6)  # one request's synapses or neurons: below 10^12, at most 6 decimals
COST_SUM = pa.decimal128(38, 12)
UNITS_SUM = pa.decimal128(38, 6)
TOKENS_SUM = pa.decimal128(38, 0)  # two requests of 2^63 - 1 tokens no longer fit an int64


@dataclass(frozen=True)
class Column:
    """A column: its Arrow type, its unit, how values of many rows become one, and what it means.

    absent: what it holds in a file from before its table had it; None for null.
    """

    name: str
    type: pa.DataType
    doc: str
    unit: str = ""
    merge: str = ""  # "sum" for a measure; "" for an identifier, a date, or what is stated per row
    nullable: bool = False
    absent: int | None = None


@dataclass(frozen=True)
class Table:
    """A table: its name, the columns that identify a row (unique together), and all its columns in order."""

    name: str
    doc: str
    grain: tuple[str, ...]
    columns: tuple[Column, ...]
    monthly: bool = True  # one partition a month; otherwise one in all

    @property
    def arrow_schema(self) -> pa.Schema:
        """The columns as stored. Everything is nullable in Parquet: engines disagree on how to say it isn't."""
        return pa.schema([pa.field(column.name, column.type) for column in self.columns])

    def rows_of(self, rows: pa.Table) -> pa.Table:
        """The rows of a file as this table's, those of a file from before it had some of its columns too."""
        for column in self.columns:
            if column.name not in rows.column_names:
                absent = pa.repeat(pa.scalar(column.absent, column.type), rows.num_rows)
                rows = rows.append_column(column.name, absent)
        return rows.select([column.name for column in self.columns]).cast(self.arrow_schema)


_ORGANIZATION = Column("organization_id", pa.string(), "the customer")
_API_KEY = Column("api_key_id", pa.string(), "the customer's gateway key that made the requests")
_MODEL = Column("model", pa.string(), "the model asked for; null where the log names none", nullable=True)
_DAY = Column("day", DAY, "UTC day of the requests")
_MEASURES = (
    Column("requests", pa.int64(), "requests made with an API key, failed ones too", "requests", "sum"),
    Column("failed_requests", pa.int64(), "those with a status of 400 or more", "requests", "sum"),
    Column("cost", COST_SUM, "what they cost, exactly, as far as it is known", "currency", "sum"),
    Column("synapses", UNITS_SUM, "synapses used, exactly", "synapses", "sum"),
    Column("neurons", UNITS_SUM, "neurons used, exactly", "neurons", "sum"),
    Column(
        "input_tokens",
        TOKENS_SUM,
        "tokens sent to the model, as far as the log says; null where it says so of no request",
        "tokens",
        "sum",
        nullable=True,
    ),
    Column(
        "output_tokens",
        TOKENS_SUM,
        "tokens the model answered with, as far as the log says; null where it says so of no request",
        "tokens",
        "sum",
        nullable=True,
    ),
    Column(
        "unpriced",
        pa.int64(),
        "requests of which no cost is known: neither their log nor the price book says one",
        "requests",
        "sum",
        absent=0,
    ),
)

EVENT = Table(
    "event",
    "An accepted request, typed. One file for each taken-in content and UTC day; copies are still in it.",
    (),
    (
        Column("request_id", pa.string(), "the request's name, unique within its organization and UTC day"),
        Column("timestamp", INSTANT, "start of the request"),
        _ORGANIZATION,
        Column("api_key_id", pa.string(), "the gateway key; null for an interactive session", nullable=True),
        Column("cost", COST, "cost of the request; null where a price book is to give it", "currency", nullable=True),
        Column("synapses", UNITS, "synapses used; null where tokens are to give them", "synapses", nullable=True),
        Column("neurons", UNITS, "neurons used; null where tokens are to give them", "neurons", nullable=True),
        Column("model", pa.string(), "the model asked for", nullable=True),
        Column("endpoint", pa.string(), "the path called", nullable=True),
        Column("status", pa.int16(), "HTTP status of the answer", nullable=True),
        Column(
            "input_tokens",
            pa.int64(),
            "tokens sent to the model; null where a mapped record has none",
            "tokens",
            nullable=True,
        ),
        Column(
            "output_tokens",
            pa.int64(),
            "tokens the model answered with; null where a mapped record has none",
            "tokens",
            nullable=True,
        ),
        Column(
            "cached_input_tokens",
            pa.int64(),
            "those of the input tokens that were read from a cache; null where the log does not say",
            "tokens",
            nullable=True,
        ),
        Column(
            "cache_write_tokens",
            pa.int64(),
            "those of the input tokens that were written into a cache; null where the log does not say",
            "tokens",
            nullable=True,
        ),
        Column(
            "reasoning_tokens",
            pa.int64(),
            "those of the output tokens that the model used for reasoning; null where the log does not say",
            "tokens",
            nullable=True,
        ),
        Column("currency", pa.string(), "currency of the cost; null: the deployment's own", nullable=True),
        Column("deployed_model", pa.string(), "the model that answered, where the log names it", nullable=True),
        Column("provider", pa.string(), "the company or server that ran the model", nullable=True),
        Column(
            "most_complete",
            pa.bool_(),
            "whether the most complete of several copies counts, and not the earliest; null: the earliest",
            nullable=True,
        ),
        Column(
            "line", pa.int64(), "line number in the raw file, from 1; null in files of older releases", nullable=True
        ),
    ),
)

REJECTED = Table(
    "rejected",
    "A line that was not accepted: where it stands and why. Its text stays in the raw file.",
    ("line",),
    (
        Column("line", pa.int64(), "line number in the raw file, from 1"),
        Column("reason", pa.string(), "the first rule it breaks"),
    ),
)

API_KEY_DAY = Table(
    "api_key_day",
    "What each API key used of each model on each day.",
    ("organization_id", "day", "api_key_id", "model"),
    (_ORGANIZATION, _DAY, _API_KEY, _MODEL, *_MEASURES),
)
API_KEY_MONTH = Table(
    "api_key_month",
    "What each API key used of each model in the month.",
    ("organization_id", "api_key_id", "model"),
    (_ORGANIZATION, _API_KEY, _MODEL, *_MEASURES),
)
ORGANIZATION_DAY = Table(
    "organization_day",
    "What each organization's API keys used on each day. The endpoint reads this one.",
    ("organization_id", "day"),
    (_ORGANIZATION, _DAY, *_MEASURES),
)
ORGANIZATION_MONTH = Table(
    "organization_month",
    "What each organization's API keys used in the month.",
    ("organization_id",),
    (_ORGANIZATION, *_MEASURES),
)
DAY_LEDGER = Table(
    "day",
    "The ledger of days: what each published day was made from and how its accepted lines were counted.",
    ("day",),
    (
        _DAY,
        Column("fingerprint", pa.string(), "hash of the taken-in contents and the rule the day was rolled up from"),
        Column("artifact", pa.string(), "the day's file below daily/"),
        Column("as_of", INSTANT, "start of the run that rolled it up: what came to raw/ later is not in it"),
        Column("accepted", pa.int64(), "accepted lines dated on this day", "lines", "sum"),
        Column("counted", pa.int64(), "requests with an API key, each once", "requests", "sum"),
        Column("duplicate", pa.int64(), "further copies of a request", "lines", "sum"),
        Column("conflicting", pa.int64(), "copies that differ from the one that counts", "lines", "sum"),
        Column("session", pa.int64(), "interactive requests, each once: kept, not counted as usage", "requests", "sum"),
        Column("unpriced", pa.int64(), "counted requests of which no cost is known", "requests", "sum", absent=0),
        Column(
            "without_tokens",
            pa.int64(),
            "those of the unpriced requests whose log carries no token count",
            "requests",
            "sum",
            absent=0,
        ),
        Column(
            "disagreeing",
            pa.int64(),
            "copies that differ from the one that counts in a billed value: key, cost, units, tokens or model",
            "lines",
            "sum",
            absent=0,
        ),
        Column(
            "disagreement",
            pa.struct([pa.field("organization_id", pa.string()), pa.field("request_id", pa.string())]),
            "one request of which copies disagree in a billed value",
            nullable=True,
        ),
        Column(
            "pricing",
            pa.struct(
                [
                    pa.field("book", pa.string()),
                    pa.field("rates", pa.string()),
                    pa.field("currency", pa.string()),
                    pa.field("answer", pa.string()),
                    pa.field("models", pa.list_(pa.string())),
                    pa.field("units", pa.list_(pa.string())),
                    pa.field("currencies", pa.list_(pa.string())),
                ]
            ),
            "by which book and rates (files below books/) it was priced, in which currency; a hash of all they say of"
            " it; and what it asks them for: models without a cost, without synapses or neurons, and currencies (null"
            " where these are too many). Null for a day that asks for nothing",
            nullable=True,
        ),
        Column(
            "currency",
            pa.string(),
            "the deployment's when the day was rolled up; null for a day from before that was written down",
            nullable=True,
        ),
    ),
)
FILE_LEDGER = Table(
    "file",
    "The ledger of files: which raw contents this version counts.",
    ("file",),
    (
        Column("file", pa.string(), "path below raw/"),
        Column("format", pa.string(), "the format and the ending it was read as"),
        Column("rule", pa.string(), "hash of that format and of the rules a line must pass"),
        Column(
            "signature",
            pa.string(),
            "size, times and inode when it was read, in a bucket size and ETag; while they stay, it stays shut",
        ),
        Column("content", pa.string(), "SHA-256 of the file's bytes"),
        Column("take_in", pa.string(), "name of what this content was made into"),
        Column("taken_at", INSTANT, "start of the run that took it in: later lines were from the future"),
        Column("lines", pa.int64(), "lines in this content, blank ones left out; a span is a line", "lines"),
        Column("accepted", pa.int64(), "those that are requests; counted only where same_as is null", "lines"),
        Column("quarantined", pa.int64(), "those that are not", "lines"),
        Column("skipped", pa.int64(), "those that the format leaves out", "lines", absent=0),
        Column(
            "tally",
            pa.list_(
                pa.struct(
                    [pa.field("kind", pa.string()), pa.field("reason", pa.string()), pa.field("lines", pa.int64())]
                )
            ),
            "for each reason: how many lines were quarantined or skipped; how many spans were merged into the call that"
            " they tell of; and of how many nobody can decide whether they are calls of their own",
            nullable=True,
        ),
        Column("same_as", pa.string(), "another file with this very content, which counts it", nullable=True),
        Column("heals_at", INSTANT, "when its earliest line from the future may be taken in", nullable=True),
        Column("rejected", pa.string(), "its quarantined lines' file below rejected/", nullable=True),
        Column(
            "events",
            pa.list_(
                pa.struct([pa.field("day", DAY), pa.field("accepted", pa.int64()), pa.field("artifact", pa.string())])
            ),
            "for each UTC day: accepted lines, and their file below events/",
        ),
    ),
    monthly=False,
)

RESTATEMENT = Table(
    "restatement",
    "A published day that changed after it was over, in any measure of any key and model: for whom, from what to what, "
    "by which version, and why. What was before is null where it could not be read any more.",
    ("day", "organization_id", "version"),
    (
        _DAY,
        _ORGANIZATION,
        Column("version", pa.int64(), "the version that brought the change"),
        Column("run_started", INSTANT, "start of the run that published it"),
        Column(
            "cause",
            pa.string(),
            "late file, replaced file, healed line, rule change, price change, repaired damage, or backfill for none of"
            " them; "
            "several with commas",
        ),
        Column("files", pa.list_(pa.string()), "the raw files that brought it about, the first 20 in order of path"),
        Column("keys_changed", pa.int64(), "API keys with other usage than before", "keys", nullable=True),
        *(
            Column(
                f"{measure.name}_{when}",
                measure.type,
                f"{measure.name} {when}",
                measure.unit,
                nullable=when == "before",
            )
            for measure in _MEASURES
            for when in ("before", "after")
        ),
    ),
)

USAGE = (ORGANIZATION_DAY, ORGANIZATION_MONTH, API_KEY_DAY, API_KEY_MONTH)
LEDGER = (FILE_LEDGER, DAY_LEDGER, RESTATEMENT)
PUBLISHED = {table.name: table for table in (*USAGE, *LEDGER)}


def published_schema() -> pa.Schema:
    """The Delta table's schema: every published column once, after the two partition columns `rollup` and `month`."""
    fields = {"rollup": pa.field("rollup", pa.string()), "month": pa.field("month", pa.string())}
    for table in PUBLISHED.values():
        for field in table.arrow_schema:
            if fields.setdefault(field.name, field).type != field.type:
                raise TypeError(f"column {field.name} of {table.name} has another type than in an earlier table")
    return pa.schema(list(fields.values()))
