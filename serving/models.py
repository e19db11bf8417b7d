"""The bodies, each field declared once: its name, its place, its unit and its meaning.

JSON and the OpenAPI document both come from here. The mix of snake and camel case is the API's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from typing import Annotated, Any, Literal, Self

import msgspec
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic.json_schema import SkipJsonSchema

from pipeline.contract.coverage import DayState
from pipeline.contract.layout import last_day_of
from serving.amounts import Amount
from serving.usage import Total, Usage, total_of

ErrorType = Literal["client_error", "authorization_error", "validation_error", "server_error"]


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
        description="days with at least one API-key request: the length of dailyUsage, but for fill=zero",
        ge=0,
        le=31,
    )


def _without_default(schema: dict[str, Any]) -> None:
    """A field that may not be there is never null."""
    schema.pop("default", None)


# What is said of usage wherever it stands.
Requests = Annotated[int, Field(description="requests made with an API key, failed ones too", ge=0, examples=[850])]
Cost = Annotated[Amount, Field(description="what they cost, exactly, in the deployment's currency", examples=[212.5])]
Synapses = Annotated[Amount, Field(description="synapses used, exactly", examples=[425000.0])]
Neurons = Annotated[Amount, Field(description="neurons used, exactly", examples=[8500.0])]
AverageCost = Annotated[
    Amount,
    Field(
        description="total cost divided by total requests, in the deployment's currency, rounded half-even to 12"
        " decimals; 0.0 when there were no requests",
        examples=[0.25],
    ),
]
MonthNumber = Annotated[int, Field(description="calendar month, 1 to 12, UTC", ge=1, le=12, examples=[11])]
YearNumber = Annotated[int, Field(description="calendar year, UTC", examples=[2025])]


class KeyGroup(_Body):
    """What one API key used on the day."""

    api_key_id: str = Field(description="the gateway key that made the requests", examples=["key_prod"])
    requests: Requests
    cost: Cost
    synapses: Synapses
    neurons: Neurons


class ModelGroup(_Body):
    """What was used of one model on the day."""

    model: str | None = Field(description="the model asked for; null where the log names none", examples=["mini"])
    requests: Requests
    cost: Cost
    synapses: Synapses
    neurons: Neurons


# Very many perhaps: they come as finished JSON, made column by column.
Groups = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "array", "items": {"$ref": f"#/components/schemas/{group.__name__}"}}
                for group in (KeyGroup, ModelGroup)
            ]
        }
    ),
]


class DailyUsage(_Body):
    """What was used on one UTC day."""

    day: date = Field(serialization_alias="date", description="UTC day", examples=["2025-11-15"])
    requests: Requests
    cost: Cost
    synapses: Synapses
    neurons: Neurons
    groups: Groups = Field(
        default=None,
        exclude_if=lambda groups: groups is None,
        description="with group_by only: the API keys used on the day by id, or the models by name with null first;"
        " their sums are the day's, exactly",
        json_schema_extra=_without_default,
    )


class Summary(_Body):
    """The sums of the listed days, exactly."""

    organization_id: str = Field(description="the organization", examples=["org_abc123"])
    month: MonthNumber
    year: YearNumber
    total_requests: int = Field(
        serialization_alias="totalApiKeyRequests", description="requests made with an API key", ge=0, examples=[1670]
    )
    total_cost: Amount = Field(
        serialization_alias="totalApiKeyCost",
        description="what they cost, exactly, in the deployment's currency",
        examples=[417.5],
    )
    average_cost: AverageCost = Field(serialization_alias="averageCostPerRequest")
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

    @classmethod
    def of(cls, organization_id: str, month: date, total: Total, generated_at: datetime) -> Self:
        """The sums of `month` (its first day). generated_at: UTC, cut to whole seconds."""
        return cls(
            organization_id=organization_id,
            month=month.month,
            year=month.year,
            total_requests=total.requests,
            total_cost=total.cost,
            average_cost=total.average_cost,
            total_synapses=total.synapses,
            total_neurons=total.neurons,
            generated_at=generated_at.replace(microsecond=0),
        )


class DayCoverage(_Body):
    """Whether what is said of one UTC day is all there is to say."""

    day: date = Field(serialization_alias="date", description="UTC day", examples=["2025-11-15"])
    state: DayState = Field(
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
        serialization_alias="dailyUsage",
        description="the days with at least one API-key request, or with fill=zero every day, newest first",
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
        groups: Mapping[date, Any] | None = None,
    ) -> Self:
        """The body for `days` of `month` (its first day), newest first. generated_at: UTC, cut to whole seconds.

        groups: of each day, a list or its JSON; a day without any has none.
        """
        last_day = last_day_of(month)
        return cls(
            organization_id=organization_id,
            period=Period(
                year=month.year,
                month=month.month,
                start_date=month,
                end_date=last_day,
                days_in_month=last_day.day,
                days_with_api_usage=sum(usage.requests > 0 for usage in days),
            ),
            daily_usage=[_day(usage, None if groups is None else groups.get(usage.day, [])) for usage in days],
            summary=Summary.of(organization_id, month, total_of(days), generated_at),
            coverage=None if coverage is None else list(coverage),
        )


def _day(usage: Usage, groups: Any = None) -> DailyUsage:
    return DailyUsage(
        day=usage.day,
        requests=usage.requests,
        cost=usage.cost,
        synapses=usage.synapses,
        neurons=usage.neurons,
        groups=groups,
    )


class KeyTotal(_Body):
    """The sums of the listed days, exactly."""

    requests: int = Field(
        serialization_alias="totalRequests", description="requests, failed ones too", ge=0, examples=[1670]
    )
    cost: Amount = Field(
        serialization_alias="totalCost",
        description="what they cost, exactly, in the deployment's currency",
        examples=[417.5],
    )
    synapses: Amount = Field(
        serialization_alias="totalSynapses", description="synapses used, exactly", examples=[835000.0]
    )
    neurons: Amount = Field(serialization_alias="totalNeurons", description="neurons used, exactly", examples=[16700.0])
    average_cost: AverageCost = Field(serialization_alias="averageCostPerRequest")


KeyId = Annotated[str, Field(description="the gateway key that made the requests", examples=["key_prod"])]
KeyName = Annotated[str | None, Field(description="the key's name; null where it has none", examples=["production"])]


class MonthOfKey(_Body):
    """What one of an organization's API keys used in one month, day by day."""

    api_key_id: KeyId = Field(serialization_alias="apiKeyId")
    name: KeyName = Field(serialization_alias="apiKeyName")
    organization_id: str = Field(
        serialization_alias="organizationId", description="the organization", examples=["org_abc123"]
    )
    month: MonthNumber
    year: YearNumber
    usage: KeyTotal
    daily_usage: list[DailyUsage] = Field(
        serialization_alias="dailyUsage", description="the days with at least one request of the key, newest first"
    )

    @classmethod
    def of(cls, organization_id: str, api_key_id: str, name: str | None, month: date, days: Sequence[Usage]) -> Self:
        """The body for `days` of `month` (its first day), newest first."""
        total = total_of(days)
        return cls(
            api_key_id=api_key_id,
            name=name,
            organization_id=organization_id,
            month=month.month,
            year=month.year,
            usage=KeyTotal(**total._asdict(), average_cost=total.average_cost),
            daily_usage=[_day(usage) for usage in days],
        )


class TopPeriod(_Body):
    """The month asked for."""

    type: Literal["monthly"] = Field(description="always monthly")
    month: MonthNumber
    year: YearNumber
    start_date: date = Field(description="first UTC day of the month", examples=["2025-11-01"])
    end_date: date = Field(description="last UTC day of the month, included", examples=["2025-11-30"])


class TopKey(_Body):
    """What one API key used in the month."""

    api_key_id: KeyId
    name: KeyName = Field(serialization_alias="key_name")
    requests: Requests = Field(serialization_alias="total_requests")
    cost: Cost = Field(serialization_alias="total_cost")
    synapses: Synapses = Field(serialization_alias="total_synapses")
    neurons: Neurons = Field(serialization_alias="total_neurons")


class TopKeys(_Body):
    """The API keys of an organization that cost most in one month."""

    organization_id: str = Field(description="the organization", examples=["org_abc123"])
    period: TopPeriod
    keys: list[TopKey] = Field(
        serialization_alias="top_keys",
        description="at most `limit` keys: the dearest first; of equal cost that with more requests first; of equal"
        " requests by id",
    )
    total: int = Field(
        serialization_alias="total_keys", description="keys with usage in the month", ge=0, examples=[12]
    )
    limit: int = Field(description="keys asked for", ge=1, le=100, examples=[10])

    @classmethod
    def of(cls, organization_id: str, month: date, keys: Sequence[TopKey], total: int, limit: int) -> Self:
        """The body for `keys`, in order, of `month` (its first day)."""
        period = TopPeriod(
            type="monthly", month=month.month, year=month.year, start_date=month, end_date=last_day_of(month)
        )
        return cls(organization_id=organization_id, period=period, keys=list(keys), total=total, limit=limit)


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
