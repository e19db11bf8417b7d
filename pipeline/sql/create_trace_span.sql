-- Grain: record of a trace. Its ancestry, and what it says of a call. Ids are kept as 128-bit hashes: two of them are never
-- the same by chance. A record that is its own parent has no parent.
-- role: 'call' for an embedding too; is_embedding tells them apart. model: without a provider before it and a date behind it.
-- is_named: the response id names its request. Otherwise the record's own id is the id of the request.
-- input_tokens, output_tokens: null unless the text is a number.
-- failed_id, failed_request, failed_organization: the texts of the record's id, request and organization, kept only for a failed call.
create or replace temp table trace_span (
    record uhugeint,
    parent uhugeint,
    request uhugeint,
    role varchar,
    is_embedding boolean,
    scope varchar,
    model varchar,
    is_named boolean,
    is_failed boolean,
    input_tokens bigint,
    output_tokens bigint,
    failed_id varchar,
    failed_request varchar,
    failed_organization varchar
)
