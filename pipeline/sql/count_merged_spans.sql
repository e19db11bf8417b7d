-- One row: how many records of calls tell of a call that another record tells of, because both have its response id; and of
-- how many calls it cannot be decided whether they are the call directly above them, or the one beside them.
-- Inputs: trace_span.
-- A failed call below one that did not fail is an attempt of its own. Of two failed calls, one below the other, and of two
-- calls that both have response ids, it is decided. Failed calls of one model with the same parent, written by different
-- instrumentations, may be one call each or the same one.
with call as (
    select distinct *
    from trace_span
    where role = 'call'
),

below as (
    select count(*) as undecided
    from call as child
    join call as parent on child.parent = parent.record
    where
        child.request != parent.request
        and not (child.is_named and parent.is_named)
        and not child.is_failed
),

beside as (
    select coalesce(sum(calls - most), 0) as undecided
    from (
        select
            sum(calls) as calls,
            max(calls) as most
        from (
            select
                parent,
                model,
                scope,
                count(*) as calls
            from call
            where is_failed and not is_named and parent is not null
            group by
                parent,
                model,
                scope
        ) as of_scope
        group by
            parent,
            model
        having count(*) > 1
    ) as of_parent
)

select
    cast((select count(distinct record) - count(distinct request) from call) as bigint) as merged,
    cast((select undecided from below) + (select undecided from beside) as bigint) as undecided
