-- Adds records to trace_span.
-- Inputs: records (record_id, parent_id, role, scope, organization_id, request_id, model, status; all as text).
insert into trace_span
select
    md5_number(record_id) as record,
    md5_number(parent_id) as parent,
    md5_number(concat_ws(chr(0), organization_id, request_id)) as request,
    role,
    scope,
    model,
    request_id is distinct from record_id as is_named,
    coalesce(try_cast(status as integer) >= 400, false) as is_failed
from records
where record_id is not null
