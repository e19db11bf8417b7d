"""A rule that changes has another number: only so is everything that the old one made made anew."""

from __future__ import annotations

import ast
import hashlib
import re
from pathlib import Path

from pipeline.intake import TAKE_IN_RULE
from pipeline.rollup import ROLL_UP_RULE

PIPELINE = Path(__file__).parent.parent / "pipeline"

# What belongs to a rule but is not in the hash that names it at work; see intake.rule_of and rollup.fingerprint_of.
TAKEN_IN_BY = (
    "line.py",
    "rows.py",
    "raw.py",
    "json_file.py",
    "judge.py",
    "bulk.py",
    "spool.py",
    "intake.py",
    "format.py",
    "mapping.py",
    "records.py",
    "tabular.py",
    "lenient_json.py",
    "traces.py",
    "sql/pure_functions.sql",
    "sql/format_functions.sql",
    *(f"sql/{name}.sql" for name in ("create_trace_span", "add_trace_spans", "resolve_failed_spans")),
    *(f"sql/{name}.sql" for name in ("resolve_agents", "verdicts_on_trace_spans", "count_merged_spans")),
)
ROLLED_UP_BY = (
    *("rollup.py", "buckets.py", "prices.py", "price_book.py"),
    *("sql/some_events.sql", "sql/count_copies.sql", "sql/merge_sums.sql"),
    *("sql/identity_hashes.sql", "sql/lines_of_bucket.sql", "sql/repeated_hashes.sql", "sql/repeated_events.sql"),
)

PINNED = {
    "TAKE_IN_RULE": (3, "093cdd0c0d657789"),
    "ROLL_UP_RULE": (2, "6b73502e889ee19a"),
}


def meaning_of(path: Path) -> str:
    """A source without its wording: no comments, no docstrings, no layout."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".sql":
        return " ".join(re.sub(r"--.*", "", text).split())
    return str(_plain(ast.parse(text)))


def _plain(node: object) -> object:
    """A syntax tree as plain values, the same in every Python that has these fields."""
    if isinstance(node, list):
        return [_plain(part) for part in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = {name: value for name, value in ast.iter_fields(node) if value not in (None, []) and name != "kind"}
    body = fields.get("body")
    if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        fields["body"] = body[1:]
    return type(node).__name__, [(name, _plain(value)) for name, value in sorted(fields.items())]


def _pin(number: int, sources: tuple[str, ...]) -> tuple[int, str]:
    meanings = "\0".join(meaning_of(PIPELINE / source) for source in sources)
    return number, hashlib.sha256(meanings.encode()).hexdigest()[:16]


def test_what_a_line_is_taken_for_changes_with_its_rule_s_number() -> None:
    pin = _pin(TAKE_IN_RULE, TAKEN_IN_BY)
    assert pin == PINNED["TAKE_IN_RULE"], (
        f"one of {', '.join(TAKEN_IN_BY)} changed. If a line may now be taken for something else, raise TAKE_IN_RULE in"
        f" pipeline/intake.py, or files taken in before stay as they are. Then pin what this test found: {pin}"
    )


def test_how_a_day_is_rolled_up_changes_with_its_rule_s_number() -> None:
    pin = _pin(ROLL_UP_RULE, ROLLED_UP_BY)
    assert pin == PINNED["ROLL_UP_RULE"], (
        f"one of {', '.join(ROLLED_UP_BY)} changed. If a day may now be counted otherwise, raise ROLL_UP_RULE in"
        f" pipeline/rollup.py, or days rolled up before stay as they are. Then pin what this test found: {pin}"
    )


def test_wording_alone_is_no_other_rule(tmp_path: Path) -> None:
    one, other = tmp_path / "one.py", tmp_path / "other.py"
    one.write_text('"""A."""\n\ndef f(x):\n    """B."""\n    return x + 1  # C\n')
    other.write_text('"""Other."""\ndef f(x):\n    "words"\n\n    return (x +\n        1)\n')
    assert meaning_of(one) == meaning_of(other)
    other.write_text('"""A."""\n\ndef f(x):\n    """B."""\n    return x + 2  # C\n')
    assert meaning_of(one) != meaning_of(other)
    one, other = tmp_path / "one.sql", tmp_path / "other.sql"
    one.write_text("-- A.\nselect a\nfrom t")
    other.write_text("select a -- B\n  from t\n")
    assert meaning_of(one) == meaning_of(other)
