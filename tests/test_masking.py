"""Keys in clear are masked in the lines that are shown; all else of a line stays as it is."""

from __future__ import annotations

import hashlib
import json

import pytest

from pipeline.masking import masked

SQL = "select 'sha256:' || sha256(record->>'user_key') as api_key_id, record->>'model' as model from records"
KEY = "sk-12345678"


def digest(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ('{"user_key": "sk-12345678", "model": "m"}', '{"user_key": "(masked)", "model": "m"}'),
        ('{"a": ["sk-12345678"], "error": "no key sk-12345678"}', '{"a": ["(masked)"], "error": "no key (masked)"}'),
        ('{"authorization": "Bearer sk-12345678"}', '{"authorization": "Bearer (masked)"}'),
        ('{"user_key": "sk-1234\\u0035678", "model": "m"}', '{"user_key": "(masked)", "model": "m"}'),
        ('{"a": "Bearer sk-1234\\u0035678", "b": "\\u00e9"}', '{"a": "Bearer (masked)", "b": "\\u00e9"}'),
        ('{"user_key":"sk-12345678"', '{"user_key":"(masked)"'),
    ],
)
def test_a_key_is_masked_wherever_it_stands(line: str, shown: str) -> None:
    assert masked(line, [digest(KEY), "m"], SQL) == shown


def test_a_key_with_quotes_or_umlauts_in_it_is_masked_as_it_is_written() -> None:
    for key in ('a"b\\c', "schlüssel", "日本語のキー"):
        for as_ascii in (True, False):
            line = json.dumps({"user_key": key, "n": 1}, ensure_ascii=as_ascii)
            assert masked(line, [digest(key)], SQL) == '{"user_key": "(masked)", "n": 1}'


def test_a_short_key_masks_no_part_of_something_else() -> None:
    assert masked('{"user_key": "1", "tokens": 100, "id": "a1"}', [digest("1")], SQL) == (
        '{"user_key": "(masked)", "tokens": 100, "id": "a1"}'
    )


def test_without_keys_in_clear_a_line_stays_as_it_is() -> None:
    line = json.dumps({"user_key": "0123456789abcdef" * 4, "model": "m"})
    assert masked(line, ["0123456789abcdef" * 4, "m"], SQL) == line  # the producer's own hash
    assert masked('{"user_key": null, "model": "m"}', ["m"], SQL) == '{"user_key": null, "model": "m"}'
    assert masked("no JSON at all", [], SQL) == "no JSON at all"
    assert masked(f'{{"user_key": "{KEY}"', [], "select record->>'user_key' as api_key_id from records").endswith(
        f'"{KEY}"'
    )


def test_where_the_key_is_not_known_all_that_the_sql_names_is_masked() -> None:
    line = '{"user_key": "sk-12345678", "model" : "m", "prompt": "hello", "model'
    expected = '{"user_key": "(masked)", "model" : "(masked)", "prompt": "hello", "model'
    assert masked(line, [], SQL) == expected
    # A hash of another text than stands in the line, as of the key without its first characters.
    assert masked(line, [digest("12345678"), "m"], SQL) == expected
    assert masked('{"user_key": "sk-123', [], SQL) == '{"user_key": "(masked)'
    md5 = SQL.replace("sha256(", "md5(")
    assert masked('{"user_key": "sk-12345678"}', ["sha256:d6cd4e8a48ad53e0ad4b5a4b6e0c1d3a"], md5) == (
        '{"user_key": "(masked)"}'
    )


def test_a_row_of_csv_has_no_names() -> None:
    row = f"org_a,{KEY},m,100"
    assert masked(row, [digest(KEY), "m"], SQL, is_json=False) == "org_a,(masked),m,100"
    assert masked(row, [], SQL, is_json=False) == "(masked),(masked),(masked),(masked)"
