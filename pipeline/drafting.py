"""Drafting a format: which fields of some records are likely to be those of a request, by their names and values.

A draft is to be read and put right: it says what else each field might be, and what it found nothing for.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

MOST_FIELDS = 2_000
DEEPEST = 5
OTHERS = 3  # further candidates that are named

# Names of each field in other logs, the likeliest first, without case and signs.
NAMES = {
    "request_id": "requestid reqid callid litellmcallid eventid generationid id uuid traceid spanid xrequestid",
    "timestamp": "timestamp starttime startedat requeststarttime requesttime eventtime createdat created time ts"
    " datetime date timeiso8601 msec gmtcreate",
    "organization_id": "organizationid orgid userapikeyorgid httpxorgid organization org tenantid tenant customerid"
    " customer accountid account workspaceid workspace companyid company teamid team groupid projectid project",
    "api_key_id": "apikeyid keyid httpxapikeyid apikeyhash userapikeyhash keyhash virtualkeyid apikeyname keyname"
    " apikeyalias clientid credentialid apikey accesskey key token",
    "cost": "cost totalcost responsecost requestcost price amount charge spend usd",
    "synapses": "synapses",
    "neurons": "neurons",
    "model": "model modelname modelgroup requestmodel modelid engine deployment",
    "endpoint": "endpoint path route requestroute requestpath urlpath uri url operation calltype",
    "status": "statuscode httpstatus httpstatuscode responsestatus responsecode status code",
    "input_tokens": "inputtokens prompttokens contexttokens tokensin requesttokens promptlength numinputtokens"
    " upstreamxprompttokens",
    "output_tokens": "outputtokens completiontokens generatedtokens tokensout responsetokens numoutputtokens"
    " upstreamxcompletiontokens",
    "cached_input_tokens": "cachedinputtokens cachedtokens cachereadinputtokens cachereadtokens promptcachehittokens",
}
_NO_SECRETS = {
    "apikeyid",
    "keyid",
    "httpxapikeyid",
    "virtualkeyid",
    "apikeyname",
    "keyname",
    "apikeyalias",
    "clientid",
    "credentialid",
}
_CURRENCIES = {"currency", "currencycode", "costcurrency", "pricecurrency", "billingcurrency"}
_KNOWN = _CURRENCIES.union(*(names.split() for names in NAMES.values()))
_CURRENCY = re.compile("(usd|eur|chf|gbp)$")  # behind the name of a cost
_ZONED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)")
_UNZONED = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d{1,9})?( ?UTC)?")
_ZONE_APART = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)")
_NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?")


Record = Mapping[str, Any]  # numbers as the text that they were written as


@dataclass
class _Field:
    """A field of the records: the names that lead to it, in how many it has a value, and some of these."""

    path: tuple[str, ...]
    count: int = 0
    values: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What it is called, without case and signs: with the name of its object where `key.id` is a `keyid`."""
        own, owned = (re.sub(r"[^a-z0-9]", "", "".join(self.path[-length:]).lower()) for length in (1, 2))
        return owned if owned in _KNOWN else own

    @property
    def sql(self) -> str:
        quoted = [name.replace('"', '\\"').replace("'", "''") for name in self.path]
        if len(self.path) == 1 and re.fullmatch(r"[^$/.*\"]+", self.path[0]):
            return f"record->>'{quoted[0]}'"
        return "record->>'$" + "".join(f'."{name}"' if not name.isidentifier() else f".{name}" for name in quoted) + "'"


class _Currency(NamedTuple):
    """In what costs are; stated: the field that says so."""

    code: str
    stated: _Field | None


def draft_of(records: Sequence[Record], kind: str, file: str) -> str:
    """The text of a format for records like these, read from files of one kind."""
    fields = list(_fields(records))
    found = {name: _candidates(fields, name) for name in NAMES}
    priced = bool(found["cost"])
    currency = _currency(found["cost"][0], fields) if priced else None
    # Of a cost in another currency than the draft's, the book must not make one of its own.
    by_record = priced and (found["cost"][0].count == len(records) or bool(currency and currency.stated))
    columns = [
        _column(name, candidates, kind, currency)
        for name, candidates in found.items()
        if candidates or name != _OPTIONAL
    ]
    header = [
        f"-- A draft, made from the names of the fields of {' '.join(file.split())}: see that each is what it says.",
        f"-- reads: {kind}",
        f"-- prices: {'record' if by_record else 'book'}",
        f"-- units: {'record' if found['synapses'] and found['neurons'] else 'tokens'}",
    ]
    if currency:
        header.append(f"-- currency: {currency.code}")
    elif priced:
        header += [
            "-- No field says what the costs are in: they count as the deployment's own currency, unless the next line",
            "-- names theirs and loses its first dashes.",
            "-- -- currency: USD",
        ]
    header.append("-- rounds: cost to 12 decimals, half-even" if priced else "-- rounds: nothing")
    if priced and not by_record:
        header.append("-- Some records have no cost: with '-- prices: record' they would not count.")
    used = [candidates[0] for candidates in found.values() if candidates]
    used += [currency.stated] if currency and currency.stated else []
    unused = sorted({".".join(each.path) for each in fields} - {".".join(each.path) for each in used})
    if unused:
        shown = ", ".join(unused[:30]).replace("\n", " ") + (" ..." if len(unused) > 30 else "")
        header.append(f"-- Not used: {shown}"[:1000])
    body = ",\n".join(
        ["    line", *(f"    -- {comment}\n    {sql}" if comment else f"    {sql}" for sql, comment in columns)]
    )
    return "\n".join([*header, "select", body, "from records", ""])


_OPTIONAL = "cached_input_tokens"


def _fields(records: Sequence[Record]) -> Iterator[_Field]:
    """Every field that holds a text or a number in some record, the outer ones first."""
    found: dict[tuple[str, ...], _Field] = {}
    for record in records:
        for path, value in _leaves(record, ()):
            if path not in found and len(found) == MOST_FIELDS:
                continue
            each = found.setdefault(path, _Field(path))
            each.count += 1
            if len(each.values) < 20:
                each.values.append(str(value))
    yield from sorted(found.values(), key=lambda each: (len(each.path), -each.count))


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict) and len(path) < DEEPEST:
        for name, part in value.items():
            yield from _leaves(part, (*path, name))
    elif path and value and isinstance(value, str):
        yield path, value


def _candidates(fields: Sequence[_Field], name: str) -> list[_Field]:
    """The fields that may be this one, the likeliest first."""
    names = NAMES[name].split()
    called = {each.path: _called(each, name) for each in fields}
    known = [each for each in fields if called[each.path] in names and _fits(each, name)]
    return sorted(known, key=lambda each: (names.index(called[each.path]), len(each.path), -each.count))[: 1 + OTHERS]


def _called(each: _Field, name: str) -> str:
    """What a field is called; one of costs, without the currency behind it."""
    return (name == "cost" and _CURRENCY.sub("", each.name)) or each.name


def _currency(cost: _Field, fields: Sequence[_Field]) -> _Currency | None:
    """In what costs are, as the name of their field says, or another field does in most records."""
    if code := _CURRENCY.search(cost.name):
        return _Currency(code[1].upper(), None)
    for each in fields:
        if each.name in _CURRENCIES and all(re.fullmatch("[A-Za-z]{3}", value) for value in each.values):
            ((most, _),) = Counter(value.upper() for value in each.values).most_common(1)
            return _Currency(most, each)
    return None


def _fits(each: _Field, name: str) -> bool:
    """Whether the values may be such a field's."""
    if name in ("input_tokens", "output_tokens", "cached_input_tokens"):
        return all(re.fullmatch(r"\d+", value) for value in each.values)
    if name == "status":
        return all(re.fullmatch(r"[1-5]\d\d", value) for value in each.values)
    if name in ("cost", "synapses", "neurons"):
        return all(_NUMBER.fullmatch(value) for value in each.values)
    if name == "timestamp":
        return any(pattern.fullmatch(each.values[0]) for pattern in (_ZONED, _UNZONED, _ZONE_APART)) or _is_epoch(each)
    return True


def _is_epoch(each: _Field) -> bool:
    return all(_NUMBER.fullmatch(value) and 10**9 < float(value) < 10**20 for value in each.values)


def _column(name: str, candidates: Sequence[_Field], kind: str, currency: _Currency | None) -> tuple[str, str | None]:
    """A column of the select, and what is to be said of it."""
    if not candidates:
        missing = {
            "organization_id": "organization_id: no field looks like it, and no line counts without one",
            "request_id": "request_id: no field looks like it, and no line counts without one",
            "timestamp": "timestamp: no field looks like it, and no line counts without one",
            "api_key_id": "api_key_id: no field looks like it; null is an interactive session, which is not counted",
        }.get(name)
        return f"null as {name}", missing
    best = candidates[0]
    source = f"nullif({best.sql}, '')" if kind == "csv" else best.sql
    comment = None
    if name == "timestamp":
        source, comment = _moment(best, source)
    elif name == "cost":
        source = f"coalesce(cast(round_even(try_cast({source} as decimal(38, 30)), 12) as varchar), {source})"
        if currency and currency.stated:  # what is in another must not be taken for it
            source = f"case when upper({currency.stated.sql}) = '{currency.code}' then {source} end"
            comment = "cost: missing where it is in another currency, which takes a format of its own"
    elif name == "api_key_id" and best.name not in _NO_SECRETS:
        comment = "api_key_id: hashed, for it may be a key in clear"
        hashed = f"'sha256:' || sha256({source})"
        is_hash = f"case when regexp_full_match({source}, '[0-9a-fA-F]{{64}}') then {source} else {hashed} end"
        source = is_hash if best.name.endswith("hash") else hashed
    others = [".".join(each.path) for each in candidates[1:]]
    if others:
        comment = f"{comment or name + ':'}{';' if comment else ''} or {', '.join(others)}".replace("\n", " ")
    return f"{source} as {name}", comment


def _moment(best: _Field, source: str) -> tuple[str, str | None]:
    value = best.values[0]
    if _ZONED.fullmatch(value):
        return source, None
    if _ZONE_APART.fullmatch(value):
        return f"replace({source}, ' ', 'T')", None
    if _UNZONED.fullmatch(value):
        bare = f"rtrim({source}, ' UTC')" if value.endswith("UTC") else source
        return f"replace({bare}, ' ', 'T') || 'Z'", "timestamp: says no time zone and is taken as UTC"
    unit, factor = next(
        (unit, factor)
        for unit, most, factor in (
            ("seconds", 10**11, "* 1000000"),
            ("milliseconds", 10**14, "* 1000"),
            ("microseconds", 10**17, "* 1"),
            ("nanoseconds", float("inf"), "/ 1000"),
        )
        if float(value) < most
    )
    micros = f"cast(round_even(try_cast({source} as decimal(28, 9)) {factor}, 0) as bigint)"
    moment = f"strftime(make_timestamp({micros}), '%Y-%m-%dT%H:%M:%S.%fZ')"
    return f"coalesce({moment}, {source})", f"timestamp: {unit} since 1970"
