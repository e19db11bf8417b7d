"""What says where a bucket is, and how to reach it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.contract.settings import Bucket, Settings, SettingsError

IN_BUCKET = {"KEYTALLY_DATA": "s3://our-usage/keytally", "KEYTALLY_KEYS": "/k", "KEYTALLY_CACHE": "/c"}
KEY = {"AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "do-not-tell"}


def bucket(**given: str) -> Bucket:
    data = Settings.from_environment({**IN_BUCKET, **given}).data
    assert isinstance(data, Bucket)
    return data


def test_a_bucket_is_named_with_or_without_a_prefix() -> None:
    assert (bucket().name, bucket().prefix, str(bucket())) == ("our-usage", "keytally", "s3://our-usage/keytally")
    for whole in ("s3://our-usage", "s3://our-usage/"):
        assert (bucket(KEYTALLY_DATA=whole).prefix, str(bucket(KEYTALLY_DATA=whole))) == ("", "s3://our-usage")
    assert bucket(KEYTALLY_DATA="s3://our-usage/a/b=c/").prefix == "a/b=c"


def test_without_a_key_the_role_of_the_machine_is_used() -> None:
    assert (bucket().access_key_id, bucket().endpoint, bucket().region) == (None, None, "us-east-1")
    given = bucket(**KEY, AWS_ENDPOINT_URL="http://127.0.0.1:9000/", AWS_REGION="eu-central-1", AWS_SESSION_TOKEN="t")
    assert (given.access_key_id, given.endpoint, given.region) == ("AKIA", "http://127.0.0.1:9000", "eu-central-1")
    assert given.session_token == "t"


@pytest.mark.parametrize("word", ["true", "TRUE", "1", "yes"])
def test_plain_http_may_be_allowed_as_other_tools_ask_for(word: str) -> None:
    for endpoint in ("http://127.0.0.1:9000", "https://s3.example.com", ""):
        assert bucket(AWS_ALLOW_HTTP=word, AWS_ENDPOINT_URL=endpoint) == bucket(AWS_ENDPOINT_URL=endpoint)


@pytest.mark.parametrize("word", ["false", "0"])
def test_plain_http_may_be_forbidden_where_no_url_asks_for_it(word: str) -> None:
    assert bucket(AWS_ALLOW_HTTP=word, AWS_ENDPOINT_URL="https://s3.example.com").endpoint == "https://s3.example.com"
    assert bucket(AWS_ALLOW_HTTP=word).endpoint is None
    with pytest.raises(SettingsError) as wrong:
        bucket(AWS_ALLOW_HTTP=word, AWS_ENDPOINT_URL="http://127.0.0.1:9000")
    expected = "must be true or unset where AWS_ENDPOINT_URL begins with http://"
    assert str(wrong.value) == f"AWS_ALLOW_HTTP is '{word}', but {expected}"


def test_no_secret_is_told() -> None:
    settings = Settings.from_environment({**IN_BUCKET, **KEY})
    assert "do-not-tell" not in f"{settings} {settings!r} {settings.data}"


def test_a_server_looks_less_often_than_into_a_folder() -> None:
    assert Settings.from_environment(IN_BUCKET).refresh_seconds == 10
    assert Settings.from_environment({**IN_BUCKET, "KEYTALLY_REFRESH_SECONDS": "2"}).refresh_seconds == 2
    assert Settings.from_environment({}).refresh_seconds == 1
    assert Settings.from_environment(IN_BUCKET).cache == Path("/c")


@pytest.mark.parametrize(
    ("variable", "given"),
    [
        ("KEYTALLY_KEYS", {"KEYTALLY_KEYS": ""}),
        ("AWS_SECRET_ACCESS_KEY", {"AWS_ACCESS_KEY_ID": "AKIA"}),
        ("AWS_ACCESS_KEY_ID", {"AWS_SECRET_ACCESS_KEY": "do-not-tell"}),
        ("AWS_ENDPOINT_URL", {"AWS_ENDPOINT_URL": "127.0.0.1:9000"}),
        ("AWS_ENDPOINT_URL", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9000/a/b"}),
        ("AWS_ENDPOINT_URL", {"AWS_ENDPOINT_URL": "https://me:do-not-tell@s3.example.com"}),
        ("AWS_ALLOW_HTTP", {"AWS_ALLOW_HTTP": "perhaps"}),
        ("AWS_CONDITIONAL_PUT", {"AWS_CONDITIONAL_PUT": "disabled"}),
        ("AWS_SKIP_SIGNATURE", {"AWS_SKIP_SIGNATURE": "true"}),
        ("AWS_ENDPOINT", {"AWS_ENDPOINT": "http://127.0.0.1:9000"}),
        ("KEYTALLY_CACHE", {"KEYTALLY_CACHE": "s3://another/bucket"}),
    ],
)
def test_what_is_missing_or_wrong_is_named(variable: str, given: dict[str, str]) -> None:
    with pytest.raises(SettingsError) as wrong:
        Settings.from_environment({**IN_BUCKET, **given})
    assert wrong.value.variable == variable
    assert str(wrong.value).startswith(f"{variable} is ")
    assert "do-not-tell" not in str(wrong.value)
    assert "\n" not in str(wrong.value)


def test_a_folder_does_not_mind_what_is_said_of_buckets() -> None:
    assert Settings.from_environment({"AWS_CONDITIONAL_PUT": "disabled", "AWS_ENDPOINT_URL": "nonsense"})
