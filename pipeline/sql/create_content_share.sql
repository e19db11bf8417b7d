-- What each organization has in each of the contents that came to a day or left it.
create or replace temp table content_share (
    organization_id varchar,
    artifact varchar,
    fingerprint hugeint
)
