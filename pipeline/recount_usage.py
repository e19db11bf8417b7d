"""Count each recounted request once: which copy counts, what it costs, and the usage of each key and model.

Independent of the roll-up: one walk along the sorted requests, with sums of Python's integers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, timedelta
from decimal import Decimal
from itertools import groupby
from typing import Any

import pyarrow as pa

from pipeline.artifacts import verified
from pipeline.contract.store import Store
from pipeline.contract.tables import API_KEY_DAY
from pipeline.engine import Engine
from pipeline.errors import ArtifactDamaged, KeytallyError
from pipeline.ledger import Ledger
from pipeline.recount import COST_DECIMALS, UNITS_DECIMALS, Request
from pipeline.recount_prices import PriceList, has_unknown_tokens
from pipeline.run import Run

ROWS_AT_ONCE = 16_384
REQUEST_BYTES = 400  # of memory that sorting takes for each request, about
MEASURES = ("requests", "failed_requests", "cost", "synapses", "neurons", "input_tokens", "output_tokens", "unpriced")
EPOCH = date(1970, 1, 1)

Number = int | Decimal

REQUEST = pa.schema(
    [
        ("day", pa.int32()),
        ("organization_id", pa.string()),
        ("request_id", pa.string()),
        ("timestamp", pa.int64()),
        ("api_key_id", pa.string()),
        ("cost", pa.int64()),
        ("synapses", pa.int64()),
        ("neurons", pa.int64()),
        ("model", pa.string()),
        ("endpoint", pa.string()),
        ("status", pa.int16()),
        ("input_tokens", pa.int64()),
        ("output_tokens", pa.int64()),
        ("cached_input_tokens", pa.int64()),
        ("cache_write_tokens", pa.int64()),
        ("reasoning_tokens", pa.int64()),
        ("currency", pa.string()),
        ("most_complete", pa.bool_()),
    ]
)
_USAGE = pa.schema([API_KEY_DAY.arrow_schema.field(name) for name in (*API_KEY_DAY.grain, *MEASURES)])


def add(engine: Engine, what: str, schema: pa.Schema, rows: Sequence[Sequence[Any]]) -> None:
    columns = zip(*rows, strict=True) if rows else ((),) * len(schema)
    arrays = [pa.array(column, of.type) for column, of in zip(columns, schema, strict=True)]
    engine.name_arrow("recounted_batch", pa.table(arrays, schema=schema))
    engine.run(f"add_recounted_{what}")


class PriceLists:
    """By what each day was priced, as the ledger says: the books and rates that it names, read a second time."""

    def __init__(self, store: Store, ledger: Ledger) -> None:
        self._store = store
        self._days = ledger.days
        self._known: dict[tuple[str | None, str | None, str], PriceList] = {}

    def of(self, day: date) -> PriceList:
        """Raises KeytallyError when a book that the ledger names is gone or damaged."""
        entry = self._days.get(day)
        named = (entry.pricing.book, entry.pricing.rates, entry.pricing.currency) if entry and entry.pricing else None
        book, rates, currency = named or (None, None, "")
        if (book, rates, currency) not in self._known:
            self._known[book, rates, currency] = PriceList(self._text(book), self._text(rates), currency)
        return self._known[book, rates, currency]

    def _text(self, name: str | None) -> str:
        if name is None:
            return ""
        try:
            with verified(self._store, self._store.layout.books / name) as file:
                return file.readall().decode()
        except ArtifactDamaged as damage:
            raise KeytallyError(
                f"{damage.artifact} {damage.what}, by which days were priced; put it back from a copy to recount them"
            ) from damage


def count_each_request_once(run: Run, compared: Iterable[date], prices: PriceLists) -> dict[date, Counter[str]]:
    """Fill recounted_usage with the usage of the compared days; how each day's lines were counted.

    One walk along the sorted requests: of those of one name the first counts, and the others are its copies.
    """
    wanted = {(day - EPOCH).days for day in compared}
    counts: dict[date, Counter[str]] = {}
    rows: list[tuple[Any, ...]] = []
    for (day, organization), requests in groupby(_in_order(run), lambda request: request[:2]):
        if day not in wanted:
            continue
        of_day = counts.setdefault(EPOCH + timedelta(days=day), Counter())
        price_list = prices.of(EPOCH + timedelta(days=day))
        usage: dict[tuple[str, str | None], list[int]] = {}
        counted: Request | None = None
        for request in requests:
            of_day["accepted"] += 1
            if counted and request.request_id == counted.request_id:
                of_day["duplicate"] += 1
                of_day["conflicting"] += request[:-1] != counted[:-1]  # all but most_complete
                of_day["disagreeing"] += _disagrees(request, counted)
                continue
            counted = request
            if request.api_key_id is None:
                of_day["session"] += 1
                continue
            of_day["counted"] += 1
            cost = price_list.cost_of(request)
            of_day["unpriced"] += cost is None
            of_day["without_tokens"] += request.cost is None and has_unknown_tokens(request)
            sums = usage.setdefault((request.api_key_id, request.model), [0] * (len(MEASURES) + 2))
            for position, number in enumerate(_measures(request, cost)):
                sums[position] += number
        for (api_key, model), sums in usage.items():
            neuron_tokens, synapse_tokens = sums.pop(-2), sums.pop()
            sums[_NEURONS] += price_list.units_of(day, model, neuron_tokens, "tokens_per_neuron")
            sums[_SYNAPSES] += price_list.units_of(day, model, synapse_tokens, "tokens_per_synapse")
            rows.append((organization, EPOCH + timedelta(days=day), api_key, model, *_as_amounts(sums)))
        if len(rows) >= ROWS_AT_ONCE:
            add(run.engine, "usage", _USAGE, rows)
            rows = []
    add(run.engine, "usage", _USAGE, rows)
    return counts


def _disagrees(copy: Request, counted: Request) -> bool:
    """Return True if a copy differs in a billed value, unless it is an earlier state of the counted copy.

    Earlier states are known where the most complete copy counts: they have no more of any amount.
    """
    amounts = [_billed_amounts(request) for request in (copy, counted)]
    if (copy.api_key_id, copy.model) != (counted.api_key_id, counted.model):
        return True
    if copy.currency != counted.currency and None not in (copy.cost, counted.cost):
        return True
    if copy.most_complete:
        return any((mine or 0) > (other or 0) for mine, other in zip(*amounts, strict=True))
    return amounts[0] != amounts[1]


def _billed_amounts(request: Request) -> tuple[int | None, ...]:
    """Give the amounts of a request that are billed. A count of tokens that is not there bills none."""
    tokens = (
        *(request.input_tokens, request.output_tokens, request.cached_input_tokens),
        *(request.cache_write_tokens, request.reasoning_tokens),
    )
    return (request.cost, request.synapses, request.neurons, *(count or 0 for count in tokens))


def _in_order(run: Run) -> Iterator[Request]:
    """All recounted requests, copies of a request together and the one that counts first; by day and organization
    within each part that the memory holds."""
    ((requests,),) = run.engine.query("count_recounted_requests")
    parts = 1 + requests * REQUEST_BYTES // run.settings.memory_limit
    for part in range(parts):
        run.engine.run("choose_recounted_part", parts=parts, part=part)
        for batch in run.engine.stream("recounted_in_order", ROWS_AT_ONCE):
            yield from map(Request._make, zip(*(column.to_pylist() for column in batch.columns), strict=True))


_NEURONS, _SYNAPSES = MEASURES.index("neurons"), MEASURES.index("synapses")


def _measures(request: Request, cost: int | None) -> tuple[int, ...]:
    """What a request adds to each of MEASURES, and to the tokens that become neurons and synapses."""
    return (
        1,
        request.status is not None and request.status >= 400,
        cost or 0,
        request.synapses or 0,
        request.neurons or 0,
        request.input_tokens or 0,
        request.output_tokens or 0,
        cost is None,
        (request.input_tokens or 0) if request.neurons is None else 0,
        (request.output_tokens or 0) if request.synapses is None else 0,
    )


def _as_amounts(sums: Sequence[int]) -> list[Number]:
    """The sums with those of amounts as decimals."""
    decimals = {"cost": COST_DECIMALS, "synapses": UNITS_DECIMALS, "neurons": UNITS_DECIMALS}
    return [
        Decimal(f"{number}e-{decimals[name]}") if name in decimals else number
        for name, number in zip(MEASURES, sums, strict=True)
    ]
