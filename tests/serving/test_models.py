"""Amounts as JSON numbers, and the sums of a month."""

from __future__ import annotations

import json
import re
from datetime import date
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.amounts import amount_text
from serving.models import MonthOfDays
from serving.usage import Usage, listed
from tests.serving.conftest import NOW

amounts = st.decimals(0, Decimal(10) ** 26 - 1, places=12, allow_nan=False)


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        ("0", "0.0"),
        ("0.000000000000", "0.0"),
        ("425000.000000", "425000.0"),
        ("4.25E+5", "425000.0"),
        ("212.500000000000", "212.5"),
        ("1E-12", "0.000000000001"),
        ("100", "100.0"),
        ("99999999999999999999999999.999999999999", "99999999999999999999999999.999999999999"),
    ],
)
def test_an_amount_is_written_in_full(amount: str, text: str) -> None:
    assert amount_text(Decimal(amount)) == text


@given(amounts)
def test_an_amount_is_read_back_as_it_was(amount: Decimal) -> None:
    text = amount_text(amount)
    assert re.fullmatch(r"(0|[1-9][0-9]*)\.([0-9]*[1-9]|0)", text)
    assert Decimal(text) == amount


@given(st.lists(st.tuples(st.integers(0, 2**62), amounts, amounts, amounts), max_size=30))
def test_the_summary_is_the_sum_of_the_listed_days(rows: list[tuple[int, Decimal, Decimal, Decimal]]) -> None:
    days = [Usage(date(2025, 11, number), *row) for number, row in enumerate(rows, 1)]
    month = MonthOfDays.of("org", date(2025, 11, 1), listed(days), NOW)
    body = json.loads(month.json_bytes(), parse_float=Fraction, parse_int=Fraction)
    shown, summary = body["dailyUsage"], body["summary"]
    assert [day["date"] for day in shown] == sorted((str(day.day) for day in days if day.requests), reverse=True)
    assert body["period"]["daysWithApiUsage"] == len(shown)
    for total, name in (
        ("totalApiKeyRequests", "requests"),
        ("totalApiKeyCost", "cost"),
        ("total_synapses", "synapses"),
        ("totalNeurons", "neurons"),
    ):
        assert summary[total] == sum(day[name] for day in shown)
    if shown:  # round() of a fraction is half-even, and exact
        average = summary["totalApiKeyCost"] / summary["totalApiKeyRequests"]
        assert summary["averageCostPerRequest"] == Fraction(round(average * 10**12), 10**12)
    else:
        assert summary["averageCostPerRequest"] == 0


@pytest.mark.parametrize(
    ("cost", "requests", "average"),
    [
        ("1", 3, "0.333333333333"),
        ("2", 3, "0.666666666667"),
        ("0.000000000001", 2, "0.0"),
        ("0.000000000003", 2, "0.000000000002"),
        ("0.000000000005", 2, "0.000000000002"),
    ],
)
def test_the_average_is_rounded_half_even_to_12_decimals(cost: str, requests: int, average: str) -> None:
    days = [Usage(date(2025, 11, 1), requests, Decimal(cost), Decimal(0), Decimal(0))]
    body = MonthOfDays.of("org", date(2025, 11, 1), days, NOW).json_bytes().decode()
    assert f'"averageCostPerRequest":{average},' in body
