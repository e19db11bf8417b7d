"""The bodies, each field declared once: its name, its place, its unit and its meaning.

JSON and the OpenAPI document both come from here. The mix of snake and camel case is the API's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date, datetime
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from typing import Annotated, Any, Literal, NamedTuple, Self

import msgspec
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, WithJsonSchema
from pydantic.json_schema import SkipJsonSchema

from pipeline.contract.layout import last_day_of


def amount_text(amount: Decimal) -> str:
    """`amount` as a JSON number with all its digits: at least one decimal, no further trailing zeros, no exponent."""
    whole, _, decimals = f"{amount:f}".partition(".")
    return f"{whole}.{decimals.rstrip('0') or '0'}"


def _raw(amount: Decimal) -> msgspec.Raw:
    return msgspec.Raw(amount_text(amount).encode("ascii"))


ErrorType = Literal["client_error", "authorization_error", "validation_error", "server_error"]

Amount = Annotated[Decimal, PlainSerializer(_raw, return_type=Any), WithJsonSchema({"type": "number", "minimum": 0})]
"""An exact decimal. A float would lose its digits, and a JSON library's own way with decimals may write 1E-12."""


class Usage(NamedTuple):
    """What an organization's API keys used on one UTC day. Amounts are exact."""

    day: date
    requests: int
    cost: Decimal
    synapses: Decimal
    neurons: Decimal


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, validate_by_name=True, validate_by_alias=False)

    def json_bytes(self) -> bytes:
        """The body as sent."""
        return msgspec.json.encode(self.model_dump(by_alias=True))


class Period(_Body):
    """The month asked for."""

    year: int = Field(description="calendar year, UTC", examples=[2025])
    month: int = Field(description="calendar month, 1 to 12, UTC", ge=1, le=12, examples=[11])
    start_date: date = Field(serialization_alias="startDate", description="first UTC day of the month")
    end_date: date = Field(serialization_alias="endDate", description="last UTC day of the month, included")
    days_in_month: int = Field(serialization_alias="daysInMonth", description="days in the month", ge=28, le=31)
    days_with_api_usage: int = Field(
        serialization_alias="daysWithApiUsage",
        description="days with at least one API-key request: the length of dailyUsage",
        ge=0,
        le=31,
    )


class DailyUsage(_Body):
    """What was used on one UTC day."""

    day: date = Field(serialization_alias="date", description="UTC day", examples=["2025-11-15"])
    requests: int = Field(description="requests made with an API key, failed ones too", ge=1, examples=[850])
    cost: Amount = Field(description="what they cost, exactly, in the deployment's currency", examples=[212.5])
    synapses: Amount = Field(description="synapses used, exactly", examples=[425000.0])
    neurons: Amount = Field(description="neurons used, exactly", examples=[8500.0])


class Summary(_Body):
    """The sums of the listed days, exactly."""

    organization_id: str = Field(description="the organization", examples=["org_abc123"])
    month: int = Field(description="calendar month, 1 to 12, UTC", ge=1, le=12, examples=[11])
    year: int = Field(description="calendar year, UTC", examples=[2025])
    total_requests: int = Field(
        serialization_alias="totalApiKeyRequests", description="requests made with an API key", ge=0, examples=[1670]
    )
    total_cost: Amount = Field(
        serialization_alias="totalApiKeyCost",
        description="what they cost, exactly, in the deployment's currency",
        examples=[417.5],
    )
    average_cost: Amount = Field(
        serialization_alias="averageCostPerRequest",
        description="total cost divided by total requests, in the deployment's currency, rounded half-even to 12"
        " decimals; 0.0 when there were no requests",
        examples=[0.25],
    )
    total_synapses: Amount = Field(description="synapses used, exactly", examples=[835000.0])
    total_neurons: Amount = Field(
        serialization_alias="totalNeurons", description="neurons used, exactly", examples=[16700.0]
    )
    generated_at: datetime = Field(
        serialization_alias="generatedAt",
        description="when the publication that last changed this month was committed, UTC, whole seconds;"
        " the time of the answer when the month was never published",
        examples=["2025-11-15T10:30:00Z"],
    )


def _without_default(schema: dict[str, Any]) -> None:
    """A field that may not be there is never null."""
    del schema["default"]


State = Literal["not_loaded", "open", "loaded_with_findings", "loaded"]


class DayCoverage(_Body):
    """Whether what is said of one UTC day is all there is to say."""

    day: date = Field(serialization_alias="date", description="UTC day", examples=["2025-11-15"])
    state: State = Field(
        description="the first that applies. not_loaded: there is no record of anyone on this day, so a zero says"
        " nothing; open: the day was not over at X-Data-As-Of, more may come; loaded_with_findings: a file with records"
        " of this day is held back, so the numbers are those from before; loaded: what the logs hold",
        examples=["loaded"],
    )
    requests: int = Field(
        description="the organization's own requests made with an API key, as in dailyUsage; 0 on any other day",
        ge=0,
        examples=[850],
    )


class MonthOfDays(_Body):
    """What an organization's API keys used in one month, day by day."""

    organization_id: str = Field(description="the organization", examples=["org_abc123"])
    period: Period
    daily_usage: list[DailyUsage] = Field(
        serialization_alias="dailyUsage", description="the days with at least one API-key request, newest first"
    )
    summary: Summary
    coverage: list[DayCoverage] | SkipJsonSchema[None] = Field(
        default=None,
        exclude_if=lambda coverage: coverage is None,
        description="with include=coverage only: every day of the month, newest first",
        json_schema_extra=_without_default,
    )

    @classmethod
    def of(
        cls,
        organization_id: str,
        month: date,
        days: Sequence[Usage],
        generated_at: datetime,
        coverage: Iterable[DayCoverage] | None = None,
    ) -> Self:
        """The body for `days` of `month` (its first day), in any order. generated_at: UTC, cut to whole seconds."""
        listed = sorted((usage for usage in days if usage.requests), reverse=True)
        requests = sum(usage.requests for usage in listed)
        with localcontext(prec=100):  # the default of 28 digits would round a sum of 38
            cost = sum((usage.cost for usage in listed), Decimal(0))
            synapses = sum((usage.synapses for usage in listed), Decimal(0))
            neurons = sum((usage.neurons for usage in listed), Decimal(0))
            average = (cost / (requests or 1)).quantize(Decimal("1e-12"), ROUND_HALF_EVEN)
        last_day = last_day_of(month)
        return cls(
            organization_id=organization_id,
            period=Period(
                year=month.year,
                month=month.month,
                start_date=month,
                end_date=last_day,
                days_in_month=last_day.day,
                days_with_api_usage=len(listed),
            ),
            daily_usage=[
                DailyUsage(
                    day=usage.day,
                    requests=usage.requests,
                    cost=usage.cost,
                    synapses=usage.synapses,
                    neurons=usage.neurons,
                )
                for usage in listed
            ],
            summary=Summary(
                organization_id=organization_id,
                month=month.month,
                year=month.year,
                total_requests=requests,
                total_cost=cost,
                average_cost=average,
                total_synapses=synapses,
                total_neurons=neurons,
                generated_at=generated_at.replace(microsecond=0),
            ),
            coverage=None if coverage is None else list(coverage),
        )


class ErrorDetail(_Body):
    """What went wrong."""

    code: str = Field(description="the error, for programs", examples=["AUTHENTICATION_REQUIRED"])
    message: str = Field(description="the error, for people", examples=["Authentication required"])
    system_message: str = Field(description="what exactly is wrong", examples=["No API key provided"])
    type: ErrorType = Field(description="whose turn it is: the client's, whoever grants access, or the server's")
    status: int = Field(description="HTTP status", examples=[401])
    trace_id: str = Field(description="the request's id, also in X-Request-Id and in the server's log")
    timestamp: datetime = Field(description="time of the answer, UTC, whole seconds", examples=["2025-11-15T10:30:00Z"])


class ErrorAnswer(_Body):
    """The body of every error."""

    success: Literal[False] = Field(description="always false")
    error: ErrorDetail
