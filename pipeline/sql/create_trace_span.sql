-- Grain: record of a trace. Its ancestry, and what it says of a call. Ids are kept as 128-bit hashes: two of them are never
-- the same by chance. A record that is its own parent has no parent.
-- is_named: the response id names its request. Otherwise the record's own id is the id of the request.
-- failed_id, failed_organization: the texts of the record's id and organization, kept only for a failed call that is not named.
create or replace temp table trace_span (
    record uhugeint,
    parent uhugeint,
    request uhugeint,
    role varchar,
    scope varchar,
    model varchar,
    is_named boolean,
    is_failed boolean,
    has_tokens boolean,
    failed_id varchar,
    failed_organization varchar
)
