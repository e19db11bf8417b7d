-- Grain: failed call without a response id. Of which request it tells: top_id is the id of the record whose request it is.
-- Inputs: trace_span.
-- Such a call directly below another one tells of the same request, and so on up to the topmost. Of several below the same parent only
-- the one with the smallest id does: the others may be further attempts. is_below: it is directly below another such call.
-- Nothing is topmost above a circle of parents: there, each record is a request. So is one whose copies disagree about where it stands.
create or replace temp table trace_failure as
with recursive failure as (
    select
        record,
        any_value(parent) as parent,
        any_value(failed_id) as failed_id,
        any_value(failed_organization) as organization_id
    from trace_span
    where role = 'call' and record in (select record from trace_span where failed_id is not null)
    group by record
    having
        bool_and(failed_id is not null)
        and count(distinct {'parent': parent, 'organization': failed_organization}) = 1
),

below as (
    select
        child.record,
        child.parent,
        child.failed_id,
        row_number() over (partition by child.parent order by child.failed_id) = 1 as is_same_request
    from failure as child
    join failure as parent on child.parent = parent.record
),

resolved as (
    select
        record,
        failed_id as top_id
    from failure
    where record not in (select record from below)

    union all

    select
        below.record,
        case when below.is_same_request then resolved.top_id else below.failed_id end as top_id
    from resolved
    join below on below.parent = resolved.record
)

select
    failure.record,
    failure.failed_id,
    coalesce(resolved.top_id, failure.failed_id) as top_id,
    md5_number(concat_ws(chr(0), failure.organization_id, coalesce(resolved.top_id, failure.failed_id))) as request,
    below.record is not null as is_below
from failure
left join below on failure.record = below.record
left join resolved on failure.record = resolved.record
