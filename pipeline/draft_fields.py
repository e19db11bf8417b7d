"""The fields of some records, and which of them are likely to be those of a request, by their names and values.

The names are those that LiteLLM, Envoy AI Gateway, OpenRouter, Portkey, Helicone, Kong, Cloudflare, Higress,
OpenTelemetry and the providers' own usage blocks write.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MOST_FIELDS = 2_000
DEEPEST = 6
OTHERS = 3  # further candidates that are named

Record = Mapping[str, Any]  # numbers as the text that they were written as

# Names of each field in other logs, the likeliest first, without case and signs. A name may begin with its object's.
NAMES = {
    "request_id": "requestid reqid callid litellmcallid eventid generationid xkongrequestid id uuid traceid spanid",
    "timestamp": "timestamp starttime startedat requeststarttime requestcreatedat requesttime eventtime createdat"
    " created time ts datetime date timeiso8601 msec gmtcreate",
    "organization_id": "organizationid orgid userapikeyorgid organization org organisationid"
    " organisation tenantid tenant customerid customer accountid account consumercustomid workspaceid workspace"
    " companyid company teamid team groupid projectid project",
    "api_key_id": "apikeyid keyid apikeyuuid apikeyhash userapikeyhash keyhash hashedapikey hashedtoken virtualkeyid"
    " authenticatedentityid proxykeyid gatewaykeyid accesskeyid apitokenid tokenid apikeyname keyname apikeyalias"
    " userapikeyalias keyalias virtualkeyname clientid credentialid apikey userapikey virtualkey accesskey key token"
    " consumerid consumerusername consumercustomid",
    "cost": "cost totalcost costtotal responsecost requestcost price amount charge spend usd",
    "synapses": "synapses",
    "neurons": "neurons",
    "model": "modelgroup requestmodel requestedmodel model genaimodelname modelname aimodel modelid modelpermaslug"
    " engine deployment responsemodel",
    "endpoint": "endpoint requestpath requesturi requesturl path route requestroute xenvoyoriginpath urlpath uri url"
    " operation calltype",
    "status": "statuscode httpstatus httpstatuscode responsestatus responsestatuscode responsecode status code",
    "input_tokens": "inputtokens prompttokens nativetokensprompt tokensprompt genaitokensinput contexttokens tokensin"
    " tokensinput requnits requesttokens promptlength numinputtokens inputtoken llminputtoken"
    " upstreamxprompttokens",
    "output_tokens": "outputtokens completiontokens nativetokenscompletion tokenscompletion genaitokensoutput"
    " generatedtokens tokensout tokensoutput resunits responsetokens numoutputtokens outputtoken"
    " llmoutputtoken upstreamxcompletiontokens",
    "cached_input_tokens": "cachedinputtokens cachedtokens nativetokenscached tokenscached cachereadinputtokens"
    " cachereadtokens promptcachereadtokens promptcachehittokens inputcachedtokens cachedprompttokens"
    " genaitokenscachedinput genaitokenscached cachedinputtoken llmcachedinputtoken",
    "cache_write_tokens": "cachewritetokens cachewriteinputtokens cachecreationinputtokens cachecreationtokens"
    " promptcachewritetokens genaitokenscachecreationinput cachecreationinputtoken llmcachecreationinputtoken",
    "reasoning_tokens": "reasoningtokens nativetokensreasoning tokensreasoning reasoningoutputtokens thinkingtokens",
    "deployed_model": "responsemodel modelpermaslug deployedmodel genaimodelnameoverride actualmodel upstreammodel"
    " litellmmodelname",
    "provider": "provider providername customllmprovider genaiprovidername genaisystem genaibackendname llmprovider"
    " aiorg vendor",
}
CURRENCIES = {"currency", "currencycode", "costcurrency", "pricecurrency", "billingcurrency"}
# Anthropic's breakdown of `cache_creation_input_tokens`, whose sum these are.
EPHEMERAL = ("ephemeral5minputtokens", "ephemeral1hinputtokens")
TOKENS = ("input_tokens", "output_tokens", "cached_input_tokens", "cache_write_tokens", "reasoning_tokens")
AMOUNTS = ("cost", "synapses", "neurons")

# Objects whose bare `id` may be the request's. Elsewhere, as in `consumer.id`, it is the id of something else.
_OF_A_REQUEST = frozenset(
    ("data", "record", "log", "event", "entry", "result", "response", "payload", "message", "body", "call", "request")
)
_KNOWN = CURRENCIES.union(*(names.split() for names in NAMES.values()))
_CURRENCY = re.compile("(usd|eur|chf|gbp)$")  # behind the name of a cost
_CENTS = re.compile("(in)?cents?$")
_HEADER = re.compile("^(http)?x(?=.)")  # before the name of a header: `x-api-key-id`
_NAME_OF_KEY = re.compile("(id|name|alias)$")

MISSING = ("", "-")  # texts that stand for a missing value: nginx and Envoy write '-'
NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
SUCCESS = {"success", "succeeded", "ok", "completed"}
FAILURE = {"failure", "failed", "error"}


@dataclass
class Field:
    """A field of the records.

    path: The names that lead to it.
    values: Its values, without the missing ones.
    missing: How often it holds each text that stands for a missing value.
    """

    path: tuple[str, ...]
    values: list[str] = field(default_factory=list)
    missing: dict[str, int] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return len(self.values)

    @property
    def words(self) -> list[str]:
        """The names that lead to it, without case and signs. A name such as `gen_ai.usage.input_tokens` is three."""
        parts = (part for name in self.path for part in re.split(r"\.|__", name))
        return [word for word in (re.sub(r"[^a-z0-9]", "", part.lower()) for part in parts) if word]

    @property
    def name(self) -> str:
        """The name that it is known by: with the name of its object where `key.id` is a `keyid`.

        The `x-` before the name of a header is left out where the rest is a known name.
        """
        words = self.words
        as_header = [*words[:-1], *(_HEADER.sub("", word) for word in words[-1:])]
        joined = ("".join(each[-length:]) for each in (words, as_header) for length in range(min(3, len(each)), 0, -1))
        return next((name for name in joined if name in _KNOWN), words[-1] if words else "")

    @property
    def names_a_key(self) -> bool:
        """Whether its name says that it names a key, and does not hold the key itself."""
        return bool(_NAME_OF_KEY.search(self.name))

    @property
    def shown(self) -> str:
        return " ".join(".".join(self.path).split())

    @property
    def sql(self) -> str:
        quoted = [name.replace('"', '\\"').replace("'", "''") for name in self.path]
        if len(self.path) == 1 and re.fullmatch(r"[^$/.*\"]+", self.path[0]):
            return f"record->>'{quoted[0]}'"
        return "record->>'$" + "".join(f'."{name}"' if not name.isidentifier() else f".{name}" for name in quoted) + "'"

    @property
    def may_be_cached_tokens(self) -> bool:
        """Whether its name and some value look like tokens that were read from a cache or written to it."""
        words = "".join(self.words)
        named = words.endswith(EPHEMERAL) or ("cache" in words and "token" in words)
        return named and any(map(_is_count, self.values))

    def value_in(self, record: Record) -> str | None:
        """The field's value in one record."""
        found: Any = record
        for name in self.path:
            found = found.get(name) if isinstance(found, dict) else None
        return found if isinstance(found, str) and found not in MISSING else None

    def misfits(self, name: str) -> int:
        """How many of its values cannot be those of this field of a request."""
        fits = _FITS.get(name)
        return sum(not fits(value) for value in self.values) if fits else 0


def fields_of(records: Sequence[Record]) -> list[Field]:
    """Return every field that holds a text or a number in some record, the outer ones first."""
    found: dict[tuple[str, ...], Field] = {}
    for record in records:
        for path, value in _leaves(record, ()):
            if path not in found and len(found) == MOST_FIELDS:
                continue
            each = found.setdefault(path, Field(path))
            if value in MISSING:
                each.missing[str(value)] = each.missing.get(value, 0) + 1
            else:
                each.values.append(str(value))
    return sorted(found.values(), key=lambda each: (len(each.path), -each.count))


def names_in(record: Any, depth: int = 0) -> Iterator[str]:
    """Yield the names in a record without case and signs, also those of objects, of true and of false."""
    if isinstance(record, dict) and depth < DEEPEST:
        for name, part in record.items():
            yield re.sub(r"[^a-z0-9]", "", re.split(r"\.|__", name)[-1].lower())
            yield from names_in(part, depth + 1)


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(value, dict) and len(path) < DEEPEST:
        for name, part in value.items():
            yield from _leaves(part, (*path, name))
    elif path and isinstance(value, str):
        yield path, value


def candidates_for(name: str, fields: Sequence[Field]) -> list[Field]:
    """Return the fields that may be this one of a request, the likeliest first.

    One odd value leaves a field in: its own record is refused then. A field without any value that fits is left out.
    """
    named = named_like(name, fields)
    known = [each for each in named if not each.count or each.misfits(name) < each.count]
    most = max((each.count - each.misfits(name) for each in known), default=0)
    names = NAMES[name].split()

    def rank(each: Field) -> tuple[bool, int, int, int]:
        is_rare = 2 * (each.count - each.misfits(name)) < most
        return is_rare, names.index(_called(each, name)), len(each.path), -each.count

    return sorted(known, key=rank)[: 1 + OTHERS]


def named_like(name: str, fields: Sequence[Field]) -> list[Field]:
    """Return the fields that are named like this one of a request, whatever they hold."""
    names = NAMES[name].split()
    return [each for each in fields if _called(each, name) in names and not _is_of_something_else(each)]


def _called(each: Field, name: str) -> str:
    """The name of a field; of a cost, without the unit and the currency behind the name."""
    if name != "cost":
        return each.name
    return _CURRENCY.sub("", _CENTS.sub("", _CURRENCY.sub("", each.name))) or each.name


def _is_of_something_else(each: Field) -> bool:
    words = each.words
    return each.name == "id" and len(words) > 1 and words[-2] not in _OF_A_REQUEST


def currency_in_name(cost: Field) -> str | None:
    """Return the currency that the name of a cost ends with."""
    found = _CURRENCY.search(cost.name) or _CURRENCY.search(_CENTS.sub("", cost.name))
    return found[1].upper() if found else None


def is_in_cents(cost: Field) -> bool:
    return bool(_CENTS.search(_CURRENCY.sub("", cost.name)))


# --- the values ------------------------------------------------------------------------------------------------------

_DATE_TIME = r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d{1,9})?"
_TEXTS = {
    "zoned": re.compile(_DATE_TIME.replace("[T ]", "T") + r"(Z|[+-]\d\d:\d\d)"),
    "apart": re.compile(_DATE_TIME.replace("[T ]", " ") + r"(Z|[+-]\d\d:\d\d)"),
    "short": re.compile(_DATE_TIME + r"[+-]\d\d(\d\d)?"),
    "unzoned": re.compile(_DATE_TIME + r"( ?UTC)?"),
}
# The least and the most that a time since 1970 can be in each unit: 2001 to 5138 in seconds.
UNITS = {
    "seconds": (10**9, 10**11),
    "milliseconds": (10**11, 10**14),
    "microseconds": (10**14, 10**17),
    "nanoseconds": (10**17, 10**19),
}


def moment_kind(value: str) -> str | None:
    """Return how a moment is written: a key of UNITS, or `zoned`, `apart`, `short` or `unzoned`. None: it is none."""
    if kind := next((kind for kind, pattern in _TEXTS.items() if pattern.fullmatch(value)), None):
        return kind
    if not NUMBER.fullmatch(value):
        return None
    number = float(value)
    return next((unit for unit, (least, most) in UNITS.items() if least <= number < most), None)


def _is_count(value: str) -> bool:
    return bool(re.fullmatch(r"[0-9]+(\.0{1,2})?", value))  # `1.000` may be a thousand


def _is_status(value: str) -> bool:
    return bool(re.fullmatch(r"[1-5][0-9]{2}", value)) or value.lower() in SUCCESS | FAILURE


_FITS: Mapping[str, Callable[[str], object]] = {
    **dict.fromkeys(TOKENS, _is_count),
    **dict.fromkeys(AMOUNTS, NUMBER.fullmatch),
    "status": _is_status,
    "timestamp": moment_kind,
}
