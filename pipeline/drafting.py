"""Drafting a format: the SQL for the fields of some records that are likely to be those of a request.

A draft is to be read and put right: it says what else each field might be, and what it found nothing for.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from pipeline.contract.wording import count_of
from pipeline.draft_fields import (
    AMOUNTS,
    CURRENCIES,
    EPHEMERAL,
    FAILURE,
    MISSING,
    NAMES,
    SUCCESS,
    TOKENS,
    UNITS,
    Field,
    Record,
    candidates_for,
    currency_in_name,
    fields_of,
    is_in_cents,
    moment_kind,
    named_like,
    names_in,
)
from pipeline.format import Csv

Found = Mapping[str, Sequence[Field]]  # for each field of a request the candidates, the likeliest first

_OPTIONAL = ("cached_input_tokens", "cache_write_tokens", "reasoning_tokens", "deployed_model", "provider")
_NO_LINE = "no field looks like it, and no line counts without one"
_NOT_FOUND = {
    "request_id": _NO_LINE,
    "timestamp": _NO_LINE,
    "organization_id": f"{_NO_LINE}; if all lines are one organization's, write its name here in single quotes",
    "api_key_id": "no field looks like it; null is an interactive session, which is not counted",
    "cost": "no field looks like it: prices.csv prices the requests",
    "model": "no field looks like it: prices.csv cannot price a request without one",
    "input_tokens": "no field looks like it: prices.csv cannot price a request without tokens",
    "output_tokens": "no field looks like it: prices.csv cannot price a request without tokens",
}
_WHAT = {**dict.fromkeys(TOKENS, "a whole number"), **dict.fromkeys(AMOUNTS, "a number"), "status": "an HTTP status"}
_REFUSED = {"timestamp": "bad_timestamp"}  # else bad_type


class _Producer(NamedTuple):
    """A producer whose costs are in US dollars.

    fields: The names by which it is known. ids: How each id of a request begins. cents: The costs are in cents.
    """

    name: str
    fields: frozenset[str]
    ids: str = ""
    cents: bool = False


_PRODUCERS = (
    _Producer("LiteLLM", frozenset({"requestid", "calltype", "apikey", "spend", "starttime"})),
    _Producer("OpenRouter", frozenset({"generationid", "costtotal", "tokensprompt"})),
    _Producer("OpenRouter", frozenset({"totalcost", "nativetokensprompt"})),
    _Producer("OpenRouter", frozenset({"isbyok", "cost"})),  # the body of a response, or a part of it
    _Producer("OpenRouter", frozenset({"usage", "cost"}), ids="gen-"),
    _Producer("Portkey", frozenset({"aimodel", "requnits", "resunits", "cost"}), cents=True),
    _Producer("Helicone", frozenset({"requestcreatedat", "responsestatus", "prompttokens", "cost"})),
)


class Draft(NamedTuple):
    """The text of a format, and what its user needs to know of it, in sentences."""

    text: str
    notes: Sequence[str]


class _Currency(NamedTuple):
    """The currency of the costs. stated: the field that names it."""

    code: str
    stated: Field | None


def draft_of(records: Sequence[Record], kind: str, file: str, csv: Csv = Csv()) -> Draft:  # noqa: B008  # frozen
    """Draft a format for records like these, read from files of one kind."""
    return _Drafting(records, kind, csv).draft(" ".join(file.split()))


class _Drafting:
    def __init__(self, records: Sequence[Record], kind: str, csv: Csv) -> None:
        self._records = records
        self._kind = kind
        self._csv = csv
        self._fields = fields_of(records)
        self._found = _found(self._fields)
        self._producer = _producer_of(records, self._found)
        self._ephemeral = _ephemeral(self._fields, self._found)
        used = [candidates[0] for candidates in self._found.values() if candidates]
        self._empty = kind == "csv" or any("" in each.missing for each in used)
        self._dash = any("-" in each.missing for each in self._fields)
        self._priced = bool(self._found["cost"])
        self._currency = self._currency_of(self._found["cost"][0]) if self._priced else None
        self._is_transcript = _is_transcript(self._fields)
        self._notes: list[str] = []

    def draft(self, file: str) -> Draft:
        columns = [
            self._column(name, candidates)
            for name, candidates in self._found.items()
            if candidates or name not in _OPTIONAL or (name == "cache_write_tokens" and self._ephemeral)
        ]
        body = ",\n".join(
            ["    line", *(f"    -- {comment}\n    {sql}" if comment else f"    {sql}" for sql, comment in columns)]
        )
        source = "from records"
        if self._is_transcript:
            source += "\nwhere (record->'$.message.usage') is not null"
        return Draft("\n".join([*self._header(file), "select", body, source, ""]), self._notes)

    # --- the header --------------------------------------------------------------------------------------------------

    def _header(self, file: str) -> Iterator[str]:
        cost = self._found["cost"]
        # Of a cost in another currency than the draft's, the book must not make one of its own.
        stated = self._currency.stated if self._currency else None
        by_record = self._is_priced_by_record
        yield f"-- A draft, made from the names of the fields of {file}: see that each is what it says."
        yield f"-- reads: {self._kind}"
        if self._csv != Csv():
            yield f"-- csv: {self._csv.entry}"
        yield f"-- prices: {'record' if by_record else 'book'}"
        yield f"-- units: {'record' if self._found['synapses'] and self._found['neurons'] else 'tokens'}"
        if self._currency:
            yield f"-- currency: {self._currency.code}"
            if self._producer and not stated and not currency_in_name(cost[0]):
                yield f"-- {self._producer.name} writes its costs in US dollars."
        elif self._priced:
            yield "-- No field says what the costs are in: they count as the deployment's own currency, unless the next"
            yield "-- line names theirs and loses its first dashes."
            yield "-- -- currency: USD"
        yield "-- rounds: cost to 12 decimals, half-even" if self._priced else "-- rounds: nothing"
        yield from self._cached()
        if self._is_transcript or _grows(self._records, self._found):
            yield "-- copies: most complete"
            yield "-- The log writes a response while it grows: of lines with one request_id the last state counts."
        if self._is_transcript:
            yield "-- skips: lines of the transcript without usage"
        if self._priced and not by_record:
            yield "-- Some records have no cost: with '-- prices: record' they would not count."
        if self._dash:
            yield "-- '-' stands for a missing value, as Envoy and nginx write it."
        if not by_record:
            yield from self._cached_and_unused()
        yield from self._unused()

    @property
    def _is_priced_by_record(self) -> bool:
        """Whether the price book prices no record."""
        cost = self._found["cost"]
        stated = self._currency.stated if self._currency else None
        return bool(cost) and (cost[0].count == len(self._records) or stated is not None)

    def _cached(self) -> Iterator[str]:
        """Where the cached tokens stand, if not in the input, which is the default."""
        names = ("input_tokens", "cached_input_tokens", "cache_write_tokens")
        given, cached, written = (next(iter(self._found[name]), None) for name in names)
        parts_of_input = [each for each in (cached, written, *self._ephemeral) if each]
        if not given or not parts_of_input:
            return
        with_cached, more = 0, 0
        for record in self._records:
            whole, *parts = (_number(each, record) for each in (given, *parts_of_input))
            if sum(part or 0 for part in parts):
                with_cached += 1
                more += sum(part or 0 for part in parts) > (whole or 0)
        if any(_is_anthropic(given, each) for each in parts_of_input):
            yield "-- cached: beside input"
            yield "-- The usage is Anthropic's: input_tokens hold no tokens read from the cache or written to it."
        elif 2 * more > with_cached:
            yield "-- cached: beside input"
            yield f"-- {_of_samples(more, with_cached)} that have cached tokens have more of them than input tokens."
        elif more:
            self._notes.append(
                f"{given.shown} is less than the cached tokens in {_of_samples(more, with_cached)} that have some:"
                " these records are refused (bad_type), unless the draft says '-- cached: beside input'."
            )

    def _cached_and_unused(self) -> Iterator[str]:
        """What the price book leaves out: fields that look like cached or written tokens and give no column."""
        known = [each for name in ("cached_input_tokens", "cache_write_tokens") for each in self._found[name]]
        known += [candidates[0] for candidates in self._found.values() if candidates] + self._ephemeral
        parts = [each for each in self._fields if each.words and each.words[-1] in EPHEMERAL]
        hours = [each for each in parts if each.words[-1] == EPHEMERAL[1] and set(each.values) - {"0"}]
        if hours:
            yield self._warning(
                f"{hours[0].shown} are written for an hour, which Anthropic charges more for than for five minutes:"
                " prices.csv has one price for all tokens written to the cache"
            )
        written = self._found["cache_write_tokens"]
        if written and written[0].words[-1] == "cachecreationinputtokens":  # it is the sum of its parts
            known += parts
        unused = [each.shown for each in self._fields if each.may_be_cached_tokens and each not in known]
        if unused:
            yield self._warning(
                f"{', '.join(unused[:5])}{' ...' if len(unused) > 5 else ''} may hold tokens that were read from the"
                " cache or written to it, which have prices of their own. The draft does not use what it cannot tell"
                " apart: give it as cached_input_tokens or as cache_write_tokens"
            )

    def _warning(self, what: str) -> str:
        self._notes.append(f"WARNING: {what}.")
        return f"-- WARNING (prices): {what}."[:1000]  # `WARNING:` would be an entry of the header

    def _unused(self) -> Iterator[str]:
        used = [candidates[0] for candidates in self._found.values() if candidates] + self._ephemeral
        used += [self._currency.stated] if self._currency and self._currency.stated else []
        unused = sorted({each.shown for each in self._fields} - {each.shown for each in used})
        if unused:
            shown = ", ".join(unused[:30]) + (" ..." if len(unused) > 30 else "")
            yield f"-- Not used: {shown}"[:1000]

    def _currency_of(self, cost: Field) -> _Currency | None:
        """In what costs are, as the name of their field says, another field in most records, or their producer."""
        if code := currency_in_name(cost):
            return _Currency(code, None)
        for each in self._fields:
            codes = [value.upper() for value in each.values if re.fullmatch("[A-Za-z]{3}", value)]
            if each.name in CURRENCIES and 2 * len(codes) > each.count:
                ((most, _),) = Counter(codes).most_common(1)
                return _Currency(most, each)
        return _Currency("USD", None) if self._producer else None

    # --- the columns -------------------------------------------------------------------------------------------------

    def _column(self, name: str, candidates: Sequence[Field]) -> tuple[str, str | None]:
        """A column of the select, and what is to be said of it."""
        if not candidates and name == "cache_write_tokens" and self._ephemeral:
            shown = " and ".join(each.shown for each in self._ephemeral)
            what = "the sum of" if len(self._ephemeral) > 1 else "is"
            return f"{_sum_of(list(map(self._source, self._ephemeral)))} as {name}", f"{name}: {what} {shown}"
        if not candidates:
            return f"null as {name}", self._why_none(name)
        best, *others = candidates
        source = self._source(best)
        said: list[str] = []
        if name == "timestamp":
            source, said = _moment(best, source)
        elif name == "cost":
            source, said = self._cost(best, source)
        elif name == "api_key_id" and not best.names_a_key:
            said = ["api_key_id: hashed unless it is a SHA-256 already, for it may be a key in clear"]
            is_hash = f"regexp_full_match({source}, '(sha256:)?[0-9a-fA-F]{{64}}')"
            source = (
                f"case when {is_hash} then {source} when not is_text({source}) then '[]'"
                f" else 'sha256:' || sha256({source}) end"
            )
        elif name == "status" and any(value.lower() in SUCCESS | FAILURE for value in best.values):
            source = (
                f"case when lower({source}) in ({_quoted(SUCCESS)}) then '200'"
                f" when lower({source}) in ({_quoted(FAILURE)}) then '500' else {source} end"
            )
            said = ["status: 200 for a success, 500 for a failure"]
        elif name in TOKENS and any("." in value for value in best.values):
            source = f"regexp_replace({source}, '\\.0{{1,2}}$', '')"
        elif name == "model" and others and best.count < len(self._records):
            source = f"coalesce({source}, {self._source(others[0])})"
            said = [f"model: where {best.shown} is missing, {others[0].shown}"]
            others = others[1:]
        if misfits := best.misfits(name):
            self._say_odd(name, best, misfits, said)
        if others:
            said = [*(said or [f"{name}:"]), f"or {', '.join(each.shown for each in others)}"]
        return f"{source} as {name}", "; ".join(said).replace(":; or", ": or") or None

    def _source(self, each: Field) -> str:
        """The SQL that gives a field, null where a text stands for a missing value."""
        source = each.sql
        for text, is_written in zip(MISSING, (self._empty, self._dash), strict=True):
            source = f"nullif({source}, '{text}')" if is_written else source
        return source

    def _why_none(self, name: str) -> str | None:
        if named := [each for each in named_like(name, self._fields) if each.count]:
            what = _WHAT.get(name, "a moment")
            of = count_of(named[0].count, "sample")
            why = f"{named[0].shown} is named like it, but of {of} none is {what}"
            self._notes.append(f"{name}: {why}.")
            return f"{name}: {why}"
        if name not in _NOT_FOUND:
            return None
        if name in ("cost", "model", *TOKENS) and self._priced and name != "cost":
            why = "no field looks like it"
        else:
            why = _NOT_FOUND[name]
        self._notes.append(f"{name}: {why}.")
        return f"{name}: {why}"

    def _say_odd(self, name: str, best: Field, misfits: int, said: list[str]) -> None:
        what = _WHAT.get(name, "a moment")
        reason = _REFUSED.get(name, "bad_type")
        odd = f"of {count_of(best.count, 'sample')} of {best.shown}, {misfits} not {what}: refused ({reason})"
        said.append(odd if said else f"{name}: {odd}")
        self._notes.append(f"{name}: {odd}.")

    def _cost(self, best: Field, source: str) -> tuple[str, list[str]]:
        said: list[str] = []
        if is_in_cents(best) or (self._producer and self._producer.cents):
            source = f"rounded_cost_of_cents({source})"
            said.append("cost: is in cents")
        else:
            source = f"rounded_cost({source})"
        if self._currency and self._currency.stated:  # what is in another must not be taken for it
            source = f"case when upper({self._currency.stated.sql}) = '{self._currency.code}' then {source} end"
            said.append(
                f"{'' if said else 'cost: '}missing where it is in another currency, which takes a format of its own"
            )
        return source, said


def _producer_of(records: Sequence[Record], found: Found) -> _Producer | None:
    names = {name for record in records for name in names_in(record)}
    ids = found["request_id"][0].values if found["request_id"] else []
    begin = [each for each in _PRODUCERS if each.fields <= names]
    return next((each for each in begin if not each.ids or (ids and all(id.startswith(each.ids) for id in ids))), None)


def _ephemeral(fields: Sequence[Field], found: Found) -> list[Field]:
    """Anthropic's two counts of tokens written to the cache, where no field has their sum."""
    if found["cache_write_tokens"]:
        return []
    parts = [each for each in fields if each.words and each.words[-1] in EPHEMERAL and each.may_be_cached_tokens]
    return [each for each in parts if each.path[:-1] == parts[0].path[:-1]]


def _sum_of(sources: Sequence[str]) -> str:
    """The SQL for the sum of whole numbers, of which some may be missing. Another value makes it `bad_type`."""
    are_whole = " and ".join(
        f"(({source}) is null or regexp_full_match({source}, '[0-9]{{1,18}}'))" for source in sources
    )
    numbers = " + ".join(f"coalesce(try_cast({source} as bigint), 0)" for source in sources)
    return (
        f"case when coalesce({', '.join(sources)}) is null then null when {are_whole}"
        f" then cast({numbers} as varchar) else '[]' end"
    )


def _found(fields: Sequence[Field]) -> Found:
    found = {name: candidates_for(name, fields) for name in NAMES}
    if found["model"]:
        model = found["model"][0]
        deployed = [each for each in found["deployed_model"] if each is not model]
        if model.name == "modelgroup":  # LiteLLM's name for what was requested; `model` is what was deployed
            deployed += [each for each in found["model"] if each.name == "model"]
        found["deployed_model"] = deployed
    if found["organization_id"] and found["api_key_id"]:
        taken = found["organization_id"][0]
        found["api_key_id"] = [each for each in found["api_key_id"] if each is not taken]
    return found


def _moment(best: Field, source: str) -> tuple[str, list[str]]:
    """The SQL for a timestamp, written for the kind that most of the values are of, and what is to be said of it."""
    kinds = Counter(kind for kind in map(moment_kind, best.values) if kind)
    kind = kinds.most_common(1)[0][0] if kinds else "zoned"
    if kind in UNITS:
        return _moment_of_number(kind, source, kinds, best)
    said = []
    texts = {each for each in kinds if each not in UNITS}
    if any(value.endswith("UTC") for value in best.values):
        source = f"regexp_replace({source}, ' ?UTC$', '')"
    if texts - {"zoned"}:
        source = f"replace({source}, ' ', 'T')"
    if "short" in texts:
        source = f"regexp_replace({source}, '([+-][0-9]{{2}})$', '\\1:00')"
        source = f"regexp_replace({source}, '([+-][0-9]{{2}})([0-9]{{2}})$', '\\1:\\2')"
    if texts == {"unzoned"}:
        source = f"{source} || 'Z'"
    elif "unzoned" in texts:
        source = (
            f"{source} || case when regexp_matches({source}, '(Z|[+-][0-9]{{2}}:[0-9]{{2}})$') then '' else 'Z' end"
        )
    if "unzoned" in texts:
        said = ["timestamp: says no time zone and is taken as UTC"]
    return source, said


def _moment_of_number(unit: str, source: str, kinds: Counter[str], best: Field) -> tuple[str, list[str]]:
    least, most = UNITS[unit]
    number = f"try_cast(number_text({source}) as decimal(28, 9))"
    micros = {
        "seconds": f"round_even({number} * 1000000, 0)",
        "milliseconds": f"round_even({number} * 1000, 0)",
        "microseconds": f"round_even({number}, 0)",
        "nanoseconds": f"floor({number} * 0.001)",
    }[unit]
    moment = f"strftime(make_timestamp(cast({micros} as bigint)), '%Y-%m-%dT%H:%M:%S.%fZ')"
    said = [f"timestamp: {unit} since 1970"]
    others = [f"{count} in {other}" for other, count in kinds.items() if other in UNITS and other != unit]
    if others:
        said.append(f"of {count_of(best.count, 'sample')}, {', '.join(others)}: refused (bad_timestamp)")
    return f"case when {number} between {least} and {most - 1} then {moment} else {source} end", said


def _is_anthropic(given: Field, cached: Field) -> bool:
    """Whether two fields are those of Anthropic's usage block, which counts cached tokens beside the input."""
    is_otel = any(word in ("genai", "ai") for word in given.words)
    usage = given.path[:-1]
    is_beside = cached.path[:-1] == usage and cached.words[-1] in ("cachereadinputtokens", "cachecreationinputtokens")
    is_part = cached.path[:-1] in (usage, (*usage, "cache_creation")) and cached.words[-1] in EPHEMERAL
    return given.name == "inputtokens" and (is_beside or is_part) and not is_otel


def _is_transcript(fields: Sequence[Field]) -> bool:
    """Whether the records are lines of a coding agent's transcript, which repeats a response while it grows."""
    paths = {each.path for each in fields}
    return ("message", "usage", "output_tokens") in paths and ("type",) in paths


def _grows(records: Sequence[Record], found: Found) -> bool:
    """Whether records repeat an id with growing tokens."""
    if not found["request_id"]:
        return False
    amounts = [found[name][0] for name in ("output_tokens", "input_tokens", "cost") if found[name]]
    states: dict[str, list[list[float]]] = {}
    for record in records:
        if request_id := found["request_id"][0].value_in(record):
            states.setdefault(request_id, []).append([_number(each, record) or 0 for each in amounts])
    grown = other = 0
    for of_id in states.values():
        pairs = [(before, after) for before, after in pairwise(of_id) if before != after]
        grows = all(all(a <= b for a, b in zip(*pair, strict=True)) for pair in pairs)
        grown += bool(pairs) and grows
        other += bool(pairs) and not grows
    return grown > other


def _number(each: Field | None, record: Record) -> float | None:
    value = each.value_in(record) if each else None
    return float(value) if value and re.fullmatch(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?", value) else None


def _of_samples(some: int, all_of: int) -> str:
    return f"{some} of {count_of(all_of, 'sample')}"


def _quoted(words: set[str]) -> str:
    return ", ".join(f"'{word}'" for word in sorted(words))
