-- Adds records to trace_span.
-- Inputs: records (record_id, parent_id, role, scope, organization_id, request_id, model, status, input_tokens, output_tokens; all as text).
with record as (
    select
        *,
        role in ('call', 'embedding') as is_call,
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
    case when is_call then 'call' else role end as role,
    coalesce(role = 'embedding', false) as is_embedding,
    scope,
    regexp_replace(regexp_replace(model, '^([^/]*/)+', ''), '[-@][0-9]{4}-?[0-9]{2}-?[0-9]{2}$', '') as model,
    is_named,
    is_failed,
    case when regexp_full_match(input_tokens, '[0-9]{1,18}') then cast(input_tokens as bigint) end as input_tokens,
    case when regexp_full_match(output_tokens, '[0-9]{1,18}') then cast(output_tokens as bigint) end as output_tokens,
    case when is_call and is_failed then record_id end as failed_id,
    case when is_call and is_failed then request_id end as failed_request,
    case when is_call and is_failed then organization_id end as failed_organization
from record
