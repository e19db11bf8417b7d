"""What a page may ask of what is published, and what it shows of it: each page is made from one version."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, localcontext
from heapq import nlargest
from typing import Any, NamedTuple

import pyarrow.compute as pc

from pipeline.contract.layout import FIRST_DAY, LAST_DAY, days_between, last_day_of, month_of
from pipeline.contract.published import PublishedFile
from pipeline.contract.tables import FILE_LEDGER, ORGANIZATION_DAY, ORGANIZATION_MONTH
from pipeline.contract.wording import count_of
from serving.answer import Body
from serving.coverage import Basis, cover
from serving.groups import GROUP_COLUMN, GroupBy
from serving.key_usage import Leader, groups_of, leaders_of, month_of_organization, unpriced_in, used_by_organization
from serving.names import Names
from serving.pages.charts import Axis, axis_to, small, stacked
from serving.pages.drawn import page
from serving.pages.figures import Places, percent, places_of, visible
from serving.reader import Confirmed, Reader
from serving.usage import MEASURES, UNPRICED, Measure, Total, Usage, listed, total_of

MEASURE_NAMES: Mapping[Measure, str] = {
    "cost": "Cost",
    "requests": "Requests",
    "synapses": "Synapses",
    "neurons": "Neurons",
}
COLOURS = 8  # in a chart; where there are more keys or models, the last one is for all others
SHOWN = 20  # rows of a table of keys or models
OVERVIEW = 30  # rows of a table of organizations
LONGEST_IN_LEGEND = 32  # characters
_ZERO = Decimal(0)
_NOTHING = Total(0, _ZERO, _ZERO, _ZERO)


class Viewer(NamedTuple):
    """For whom a page is made: how it is labelled, and where it leads. Equal for all who see the same page.

    currency: the deployment's, for costs of which nobody says what they are in.
    """

    currency: str
    operator: bool

    def of(self, published: Confirmed) -> Viewer:
        """The same, who is told what the published costs are in."""
        return self._replace(currency=published.currency or self.currency)


class Day(NamedTuple):
    """A day of a month as it is drawn. state: as coverage tells it, or `to_come`. total: zeros where there is none."""

    day: date
    state: str
    total: Total

    @property
    def is_known(self) -> bool:
        """Whether its number means something, a zero too."""
        return self.state not in ("not_loaded", "to_come")


class Row(NamedTuple):
    """A key or a model. colour: of its part of the bars, None for one of the others. line: its days, as small bars."""

    name: str | None  # None: what the log names no model
    label: str | None  # what the customer calls the key
    colour: int | None
    total: Total
    share: str  # of what was used in all; empty where that is nothing
    line: str
    most: Decimal
    most_on: date | None


class Change(NamedTuple):
    """What was used against the month before. days: how many days of each are compared, None for all of both.

    all_before: whether the month before has no more days than these. unloaded: how many of the compared days are not
    loaded.
    """

    before: Total
    now: Total
    days: int | None
    all_before: bool
    unloaded: int


def _month_before(month: date) -> date:
    return month_of(month - timedelta(days=1))


def _label(name: str | None, longest: int) -> str:
    if name is None:
        return "(no model named)"
    return visible(name, longest) or "(a name without characters)"


def value_of(total: Total, measure: Measure) -> Decimal:
    """What was used of a measure."""
    return Decimal(getattr(total, measure))


def months_around(month: date, published: Confirmed) -> tuple[date | None, date | None]:
    """The month before, and the one behind unless nothing is known of it."""
    before = _month_before(month) if month > FIRST_DAY else None
    behind = last_day_of(month) + timedelta(days=1)
    return before, behind if behind <= min(newest_month(published) or behind, LAST_DAY) else None


def newest_month(published: Confirmed) -> date | None:
    """The month that was looked at last, or that has usage and is later; None where nobody knows."""
    known = [month for rollup, month in published.publication.files if rollup == ORGANIZATION_DAY.name and month]
    if published.as_of is not None:
        known.append(month_of(published.as_of.date()))
    return max(known, default=None)


class MonthPage(NamedTuple):
    """A month of an organization: its days by key or model, by one of the measures."""

    month: date
    viewer: Viewer
    by: GroupBy = "api_key"
    measure: Measure = "cost"

    @property
    def is_wide(self) -> bool:
        """Whether very many rows may have to be read."""
        return True

    def basis(self, published: Confirmed, names: Names) -> Hashable | None:
        """What the page depends on, beside the question and the organization; None when nothing is published of it."""
        files = published.files_of(self.month)
        if files is None:
            return None
        before = _month_before(self.month)
        around = months_around(self.month, published)
        compared = published.usage_of(before), published.coverage_of(before).ledger
        told = published.as_of_text, published.currency
        return files, compared, published.coverage_of(self.month), names.signature, told, around

    def answer(self, organization_id: str, published: Confirmed, names: Names, reader: Reader, now: datetime) -> Body:  # noqa: ARG002
        """The page. Raises UsageUnavailable, InvalidRequest."""
        files = published.files_of(self.month)
        basis = published.coverage_of(self.month)
        usage: Sequence[Usage] = ()
        loaded: Collection[date] = ()
        leaders: Sequence[Leader] = ()
        number = unpriced = 0
        change = None
        if files is not None:
            of_month = reader.usage_of(organization_id, files.days)
            usage, unpriced = listed(of_month.days), of_month.unpriced
            loaded = reader.loaded_days(basis.ledger, usage)
            leaders, number = leaders_of(
                groups_of(reader, organization_id, files, self.by, usage), self.measure, max(SHOWN, COLOURS)
            )
            change = self._change(organization_id, usage, loaded, published, reader)
        used = {one.day: Total(*one[1:]) for one in usage}
        days = [
            Day(covered.day, _state(covered.day, covered.state, published.as_of), used.get(covered.day, _NOTHING))
            for covered in reversed(list(cover(basis, loaded, usage)))
        ]
        total = total_of(usage)
        coloured = number if number <= COLOURS else COLOURS - 1
        before_month, next_month = months_around(self.month, published)
        return page(
            "month.html",
            lasting=files is not None,
            page=self,
            viewer=self.viewer.of(published),
            organization=organization_id,
            as_of=published.as_of,
            is_published=files is not None,
            total=total,
            change=change,
            is_past_published=published.usage_of(_month_before(self.month)) is not None,
            days=days,
            chart=_chart(
                days,
                [
                    leader._replace(name=self._label(leader, names, organization_id) or leader.name)
                    for leader in leaders[:coloured]
                ],
                number,
                self.measure,
            ),
            rows=self._rows(leaders[:SHOWN], coloured, total, names, organization_id),
            others=number - min(number, SHOWN),
            places=_places(days),
            row_places=_places(leaders[:SHOWN]),
            before=before_month,
            behind=next_month,
            measures=MEASURE_NAMES,
            unpriced=unpriced,
            unloaded=[day for day in days if day.state == "not_loaded"],
            group=GROUP_COLUMN[self.by],
        )

    def _change(
        self,
        organization_id: str,
        usage: Sequence[Usage],
        loaded: Collection[date],
        published: Confirmed,
        reader: Reader,
    ) -> Change | None:
        """The days that are over, against as many of the month before; None where there are none of either."""
        earlier = _month_before(self.month)
        file = published.usage_of(earlier)
        over = (published.coverage_of(self.month).first_open - self.month).days
        if file is None or not over:
            return None
        before = reader.usage_of(organization_id, file).days
        loaded_before = reader.loaded_days(published.coverage_of(earlier).ledger, before)
        last = self.month + timedelta(days=over - 1)
        is_whole = last == last_day_of(self.month)
        last_before = last_day_of(earlier) if is_whole else _day_of(earlier, over)
        return Change(
            total_of(one for one in before if one.day <= last_before),
            total_of(one for one in usage if one.day <= last),
            None if is_whole else over,
            last_before == last_day_of(earlier),
            sum(day not in loaded for day in days_between(self.month, last))
            + sum(day not in loaded_before for day in days_between(earlier, last_before)),
        )

    def _label(self, leader: Leader, names: Names, organization_id: str) -> str | None:
        """What the customer calls a key; None where it has no name, and of models."""
        return names.of(organization_id, leader.name) if self.by == "api_key" and leader.name else None

    def _rows(
        self, leaders: Iterable[Leader], coloured: int, total: Total, names: Names, organization_id: str
    ) -> list[Row]:
        rows = []
        whole = value_of(total, self.measure)
        every = list(days_between(self.month, last_day_of(self.month)))
        for position, leader in enumerate(leaders):
            values = [Decimal(leader.days.get(day, 0)) for day in every]
            most = max(values)
            rows.append(
                Row(
                    leader.name,
                    self._label(leader, names, organization_id),
                    position if position < coloured else None,
                    leader.total,
                    percent(value_of(leader.total, self.measure), whole) if whole else "",
                    small(values),
                    most,
                    every[values.index(most)] if most else None,
                )
            )
        return rows


class YearPage(NamedTuple):
    """The months of a year of an organization. year: its first day."""

    year: date
    viewer: Viewer
    measure: Measure = "cost"

    @property
    def is_wide(self) -> bool:
        """Whether very many rows may have to be read."""
        return False

    @property
    def months(self) -> list[date]:
        """Its months."""
        return [self.year.replace(month=number) for number in range(1, 13)]

    def _files(self, published: Confirmed) -> dict[date, PublishedFile]:
        files = published.publication.files
        found = {month: files.get((ORGANIZATION_MONTH.name, month)) for month in self.months}
        return {month: file for month, file in found.items() if file is not None}

    def basis(self, published: Confirmed, names: Names) -> Hashable | None:  # noqa: ARG002
        """What the page depends on, beside the question and the organization; None when nothing is published of it."""
        files = self._files(published)
        if not files:
            return None
        told = published.as_of_text, published.currency
        return tuple(files.values()), tuple(map(published.coverage_of, files)), told

    def answer(self, organization_id: str, published: Confirmed, names: Names, reader: Reader, now: datetime) -> Body:  # noqa: ARG002
        """The page. Raises UsageUnavailable."""
        files = self._files(published)
        used = {month: month_of_organization(reader, organization_id, file) for month, file in files.items()}
        totals = {month: total for month, (total, _) in used.items()}
        open_month = month_of(published.as_of.date()) if published.as_of else None
        months = [
            Day(month, "open" if month == open_month else "loaded", totals[month])
            if month in totals
            else Day(month, "to_come" if open_month and month > open_month else "not_loaded", _NOTHING)
            for month in self.months
        ]
        newest = newest_month(published)
        following = self.year.replace(year=self.year.year + 1) if self.year.year < LAST_DAY.year else None
        return page(
            "year.html",
            lasting=bool(files),
            page=self,
            viewer=self.viewer.of(published),
            organization=organization_id,
            as_of=published.as_of,
            is_published=bool(files),
            total=_sum(totals.values()),
            months=months,
            chart=_chart(months, [], 0, self.measure),
            places=_places(months),
            gaps={month: _days_missing(published.coverage_of(month), reader) for month in files},
            unpriced=sum(unpriced for _, unpriced in used.values()),
            before=self.year.replace(year=self.year.year - 1) if self.year > FIRST_DAY else None,
            behind=following if following and newest and following <= newest else None,
            measures=MEASURE_NAMES,
        )


def _days_missing(basis: Basis, reader: Reader) -> int:
    """How many days of a published month that are over are not loaded."""
    loaded = reader.loaded_days(basis.ledger, ())
    return sum(day not in loaded for day in days_between(basis.month, basis.first_open - timedelta(days=1)))


class Overview(NamedTuple):
    """Every organization in a month, and the state of what is published: for operators.

    is_late: whether a night has passed without a run that did its work. is_ahead: whether the newest run began at a
    moment that is still to come by this clock, so that its age is unknown.
    """

    month: date
    viewer: Viewer
    is_late: bool
    is_ahead: bool = False

    @property
    def is_wide(self) -> bool:
        """Whether very many rows may have to be read."""
        return True

    def basis(self, published: Confirmed, names: Names) -> Hashable | None:  # noqa: ARG002
        """What the page depends on; None when nothing is published at all."""
        if not published.publication.files:
            return None
        run = published.last_run
        return (
            published.publication.version,
            published.as_of_text,
            published.currency,
            published.coverage_of(self.month),
            (run.started, run.quarantined, tuple(run.held_back.items())) if run else None,
        )

    def answer(self, organization_id: str, published: Confirmed, names: Names, reader: Reader, now: datetime) -> Body:  # noqa: ARG002
        """The page. Raises UsageUnavailable."""
        files = published.publication.files
        basis = published.coverage_of(self.month)
        loaded = reader.loaded_days(basis.ledger, ()) if basis.ledger else ()
        days = [
            Day(one.day, _state(one.day, one.state, published.as_of), _NOTHING)
            for one in reversed(list(cover(basis, loaded, ())))
        ]
        used = _used(reader, files.get((ORGANIZATION_MONTH.name, self.month)))
        over = (basis.first_open - self.month).days
        compared = None if over >= len(days) else over
        ledger = files.get((FILE_LEDGER.name, None))
        before_month, next_month = months_around(self.month, published)
        organizations = sorted(used.items(), key=lambda one: (-one[1].cost, one[0]))
        now_used, before = self._compared(reader, files, compared)
        changes = nlargest(
            OVERVIEW // 3,
            ((name, now_used.get(name, _NOTHING), before.get(name, _NOTHING)) for name in {*now_used, *before}),
            key=lambda one: (abs(one[1].cost - one[2].cost), one[0]),
        )
        return page(
            "overview.html",
            lasting=bool(files),
            page=self,
            viewer=self.viewer.of(published),
            as_of=published.as_of,
            version=published.publication.version,
            is_published=(ORGANIZATION_MONTH.name, self.month) in files,
            unpriced=unpriced_in(reader.rows(basis.ledger, (UNPRICED,))) if basis.ledger else 0,
            total=_sum(used.values()),
            organizations=organizations[:OVERVIEW],
            number_of=len(organizations),
            places=places_of([total.cost for _, total in organizations[:OVERVIEW]], 2),
            changes=[one for one in changes if one[1].cost != one[2].cost] if compared != 0 else [],
            changed_places=places_of([total.cost for _, *both in changes for total in both], 2),
            compared=compared,
            days=days,
            states={state: [day.day for day in days if day.state == state] for state in _STATES},
            run=published.last_run,
            quarantine=_quarantine(reader, ledger) if ledger else None,
            before=before_month,
            behind=next_month,
        )

    def _compared(
        self, reader: Reader, files: Mapping[tuple[str, date | None], PublishedFile], days: int | None
    ) -> tuple[dict[str, Total], dict[str, Total]]:
        """What each organization used in this month and in the one before, in their first `days` days; None: in all."""
        kind = ORGANIZATION_MONTH if days is None else ORGANIZATION_DAY
        now, before = (
            _used(reader, files.get((kind.name, month)), None if days is None else _day_of(month, days))
            for month in (self.month, _month_before(self.month))
        )
        return now, before


def _used(reader: Reader, file: PublishedFile | None, through: date | None = None) -> dict[str, Total]:
    """What each organization used, by the file of a month; through a day of it, or in all."""
    if file is None:
        return {}
    rows = used_by_organization(reader, file, through)
    columns = (rows[name].to_pylist() for name in ("organization_id", *MEASURES))
    return {name: Total(*used) for name, *used in zip(*columns, strict=True)}


def _day_of(month: date, number: int) -> date:
    """A day of a month by its number, the day before the month for 0; at most its last."""
    return min(month + timedelta(days=number - 1), last_day_of(month))


_STATES = ("loaded", "loaded_with_findings", "open", "not_loaded", "to_come")


class Chart(NamedTuple):
    """Bars of days or months. paths: of each colour's parts, the last for the others. legend: what each stands for."""

    axis: Axis | None  # None: there is nothing to draw
    bars: Sequence[Day]
    paths: Sequence[tuple[str, str]]  # class, path
    legend: Sequence[tuple[str, str]]  # class, name
    most: Day | None
    states: Collection[str]  # of the bars


def _chart(bars: Sequence[Day], leaders: Sequence[Leader], groups: int, measure: Measure) -> Chart:
    values = [value_of(bar.total, measure) for bar in bars]
    states = {bar.state for bar in bars}
    most = max(values, default=_ZERO)
    if not most:
        return Chart(None, bars, (), (), None, states)
    series: list[tuple[str, str, Sequence[Decimal]]] = [
        (f"c{number}", _label(leader.name, LONGEST_IN_LEGEND), [leader.days.get(bar.day, _ZERO) for bar in bars])
        for number, leader in enumerate(leaders)
    ]
    if groups > len(leaders) or not leaders:
        with localcontext(prec=100):
            rest = [
                value - sum((Decimal(known[position]) for _, _, known in series), _ZERO)
                for position, value in enumerate(values)
            ]
        name = count_of(groups - len(leaders), "other") if leaders else MEASURE_NAMES[measure]
        series.append(("others" if leaders else "c0", name, rest))
    axis = axis_to(most, whole=measure == "requests")
    paths = stacked([[Decimal(value) for value in values] for _, _, values in series], axis)
    return Chart(
        axis,
        bars,
        [(kind, path) for (kind, _, _), path in zip(series, paths, strict=True)],
        [(kind, name) for kind, name, _ in series] if leaders else (),
        bars[values.index(most)],
        states,
    )


def _state(day: date, state: str, as_of: datetime | None) -> str:
    """A day to come is not loaded either; who looks at a page should not have to compare dates."""
    return "to_come" if state == "not_loaded" and as_of is not None and day > as_of.astimezone(UTC).date() else state


def _places(shown: Sequence[Any]) -> dict[str, Places]:
    """The decimals of the column of each amount."""
    of = {name: [getattr(one.total, name) for one in shown] for name in ("cost", "synapses", "neurons")}
    return {name: places_of(amounts, 2 if name == "cost" else 0) for name, amounts in of.items()}


def _sum(totals: Iterable[Total]) -> Total:
    return total_of(Usage(date.min, *total) for total in totals)


class Quarantined(NamedTuple):
    """What did not count. files: how many of them have such lines. worst: the files with most."""

    lines: int
    files: int
    of: int
    worst: Sequence[tuple[str, int, int]]


def _quarantine(reader: Reader, ledger: PublishedFile) -> Quarantined:
    rows = reader.rows(ledger, ("file", "lines", "quarantined", "same_as"))
    rows = rows.filter(pc.is_null(rows["same_as"]))
    bad = rows.filter(rows["quarantined"].cast("bool"))  # those that are not 0
    order = pc.sort_indices(bad, sort_keys=[("quarantined", "descending", "at_end"), ("file", "ascending", "at_end")])
    worst = bad.take(order[:10])
    names = ("file", "quarantined", "lines")
    return Quarantined(
        pc.sum(rows["quarantined"], min_count=0).as_py(),
        bad.num_rows,
        rows.num_rows,
        list(zip(*(worst[name].to_pylist() for name in names), strict=True)),
    )
