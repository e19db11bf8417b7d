"""Logs of which something may be wrong although every line was read: what a run reports of each file it took in."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Any, NamedTuple

from pipeline.contract.wording import count_of
from pipeline.ledger import FileEntry
from pipeline.line import Reason
from pipeline.traces import LOST_AGENT

WITH_TOKENS = ["with", "tokens"]  # how a format ends the reason of a record that it skips although it has tokens
FEW_REJECTED = 10  # fewer bad lines than this are no finding: a run with a few quarantined lines exits with 0


class OddLog(NamedTuple):
    """A file, what is odd about it, and what to do; both in words."""

    file: str
    what: str
    what_to_do: str

    def as_json(self) -> dict[str, Any]:
        return self._asdict()


def odd_logs(entries: Iterable[FileEntry], rejected_limit: Decimal) -> list[OddLog]:
    """What is odd about files that were taken in: one finding for each of them, the gravest.

    Records that are unknown to the format; a log of which too many lines do not count, or none counts; a log of which
    nothing counts although skipped records have tokens; spans that may tell of the same call; agents whose tokens count
    nowhere.

    Args:
        entries: the files.
        rejected_limit: percent of a log's lines that may be rejected. Above 0 it applies from
            FEW_REJECTED rejected lines on.
    """
    return [odd for entry in entries if not entry.same_as and (odd := _odd(entry, rejected_limit))]


def _odd(entry: FileEntry, rejected_limit: Decimal) -> OddLog | None:
    taken = entry.take_in
    format = taken.format.partition(".")[0]
    unknown = taken.lines_of("quarantined", Reason.NOT_THIS_FORMAT)
    # Lines from the future are taken in when their moment comes.
    refused = taken.quarantined - taken.lines_of("quarantined", Reason.FUTURE_TIMESTAMP)
    if unknown:
        return OddLog(
            entry.file,
            f"{unknown:,} of {count_of(taken.lines, 'record')} not of the format {format}",
            "'keytally inspect' says what they are: put them below the folder of their own format, or elsewhere than"
            f" below raw/{format}/",
        )
    # What the format leaves out was never meant to count.
    meant = taken.accepted + refused
    if refused and not taken.accepted:
        return OddLog(
            entry.file,
            f"of {count_of(taken.lines, 'line')} none counts",
            "'keytally quarantine' says why each is refused, and 'keytally inspect' which format the log is in",
        )
    if refused * 100 > rejected_limit * meant and (refused >= FEW_REJECTED or not rejected_limit):
        return OddLog(
            entry.file,
            f"{refused:,} of {count_of(meant, 'line')} {'does' if refused == 1 else 'do'} not count: more than"
            f" {rejected_limit.normalize():f} %",
            "'keytally quarantine' says why each is refused; if these lines are no requests, raise"
            " KEYTALLY_REJECTED_LIMIT",
        )
    return _odd_spans(entry)


def _odd_spans(entry: FileEntry) -> OddLog | None:
    """Return what is odd about the spans of traces in a log."""
    taken = entry.take_in
    lost_agents = taken.lines_of("undecided", LOST_AGENT)
    undecided = taken.lines_of("undecided") - lost_agents
    with_tokens = sum(
        each.lines for each in taken.tally if each.kind == "skipped" and each.reason.split()[-2:] == WITH_TOKENS
    )
    if with_tokens and not taken.accepted:
        return OddLog(
            entry.file,
            f"no span counts, although {count_of(with_tokens, 'skipped span')} {'has' if with_tokens == 1 else 'have'}"
            " tokens",
            "'keytally status --json' says which operations they name: have a model call's span written with its"
            " gen_ai.operation.name and gen_ai.usage attributes",
        )
    if undecided:
        return OddLog(
            entry.file,
            f"{count_of(undecided, 'span')} may tell of a call that counts already: no response id says so",
            "if two instrumentations write spans for the same calls, switch one of them off, or have both write"
            " gen_ai.response.id",
        )
    if lost_agents:
        return OddLog(
            entry.file,
            f"the tokens of {count_of(lost_agents, 'skipped agent')} count nowhere: no model call below has any",
            "have the instrumentation of the model calls write their tokens; in streams, ask the API for its usage",
        )
    return None
