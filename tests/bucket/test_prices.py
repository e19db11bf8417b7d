"""A price book in a bucket: read from there, replaced there in one PUT, and kept for the recount."""

from __future__ import annotations

from datetime import date

import obstore

from pipeline.prices import read_prices
from pipeline.reconcile import reconcile
from pipeline.reprice import put_in_force, reprice
from pipeline.run import start_run
from pipeline.update import roll_up
from tests.bucket.conftest import BucketPlace
from tests.pricing import STEPS, book_of, priced

FIRST_DAY, LAST_DAY = date(2025, 11, 1), date(2025, 11, 30)


def test_a_book_is_applied_in_a_bucket(place: BucketPlace) -> None:
    obstore.put(place.client, "prices.csv", book_of("gpt,2025-01-01,1,1,CHF").encode())
    place.write_raw("a.jsonl", priced(1, input_tokens=1_000_000))
    with start_run(place.settings, lambda: place.now) as run:
        assert not roll_up(run, STEPS).has_findings
    book = book_of("gpt,2025-01-01,2,1,CHF").encode()
    other = place.elsewhere("another")
    with start_run(other.settings, lambda: other.now) as run:
        found = reprice(run, read_prices(run.store, "CHF", book), FIRST_DAY, LAST_DAY)
        assert [(change.cost_before, change.cost_after) for change in found.changes] == [(1, 2)]
        assert put_in_force(run, found, book).published
    assert bytes(obstore.get(place.client, "prices.csv").bytes()) == book
    assert place.usage() == {("org_a", "2025-11-10"): (1, 2)}
    assert len(place.objects("books")) == 2
    with start_run(place.settings, lambda: place.now) as run:
        fields = {difference.field for difference in reconcile(run, FIRST_DAY, LAST_DAY).differences}
    assert fields == {"cost", "neurons"}, "as native records say them: the book's are in the rollups alone"
