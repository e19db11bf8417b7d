-- Grain: record of a trace. Its ancestry, and what it says of a call. Ids are kept as 128-bit hashes: two of them are never
-- the same by chance.
-- named: whether it is a call that the response id names; without one, the id of the record is the id of the request.
create or replace temp table trace_span (
    record uhugeint,
    parent uhugeint,
    request uhugeint,
    role varchar,
    scope varchar,
    model varchar,
    is_named boolean,
    is_failed boolean
)
