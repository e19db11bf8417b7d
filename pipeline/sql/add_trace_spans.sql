-- Adds records to trace_span.
-- Inputs: records (record_id, parent_id, role, scope, organization_id, request_id, model, status, and the five token counts; all as text).
with record as (
    select
        *,
        request_id is distinct from record_id as is_named,
        coalesce(regexp_full_match(status, '0*[45][0-9]{2}'), false) as is_failed
    from records
    where record_id is not null
)

insert into trace_span
select
    md5_number(record_id) as record,
    md5_number(nullif(parent_id, record_id)) as parent,
    md5_number(concat_ws(chr(0), organization_id, request_id)) as request,
    role,
    scope,
    model,
    is_named,
    is_failed,
    coalesce(input_tokens, output_tokens, cached_input_tokens, cache_write_tokens, reasoning_tokens) is not null
    as has_tokens,
    case when role = 'call' and is_failed and not is_named then record_id end as failed_id,
    case when role = 'call' and is_failed and not is_named then organization_id end as failed_organization
from record
