-- Grain: agent that is no request, because a call or another agent descends from it. An embedding does not count here: its tokens are
-- no part of an agent's. An agent on a circle of parents descends from itself only by mistake, and is a request.
-- is_lost: the agent has more input and output tokens than all that counts below it, so a part of them counts nowhere.
-- Inputs: trace_span.
create or replace temp table trace_agent as
with recursive above as (
    select parent as record
    from trace_span
    where (role = 'agent' or (role = 'call' and not is_embedding)) and parent is not null

    union

    select trace_span.parent
    from above
    join trace_span using (record)
    where trace_span.parent is not null
),

climbed as (
    select
        record as agent,
        parent as record
    from trace_span
    where role = 'agent' and parent is not null

    union

    select
        climbed.agent,
        trace_span.parent
    from climbed
    join trace_span using (record)
    where trace_span.parent is not null
),

agent as (
    select
        record,
        max(coalesce(input_tokens, 0) + coalesce(output_tokens, 0)) as tokens,
        record in (select record from above)
        and record not in (select record from climbed where agent = record) as is_left_out
    from trace_span
    where role = 'agent'
    group by record
),

-- Grain: record and the nearest agent above it.
owned as (
    select
        record as agent,
        record
    from agent

    union

    select
        owned.agent,
        child.record
    from owned
    join trace_span as child on owned.record = child.parent
    where child.role is distinct from 'agent'
),

-- Grain: agent. The tokens that count under it and under no agent in between: those of its calls, and its own if it is a request.
counted as (
    select
        agent,
        sum(tokens) as tokens
    from (
        select
            owned.agent,
            max(coalesce(trace_span.input_tokens, 0) + coalesce(trace_span.output_tokens, 0)) as tokens
        from owned
        join trace_span using (record)
        where trace_span.role = 'call' and not trace_span.is_embedding
        group by
            owned.agent,
            trace_span.request

        union all

        select
            record as agent,
            tokens
        from agent
        where not is_left_out
    ) as request
    group by agent
),

counted_below as (
    select
        family.record,
        sum(counted.tokens) as tokens
    from (
        select
            record as agent,
            record
        from agent

        union

        select
            agent,
            record
        from climbed
        where record in (select record from agent)
    ) as family
    join counted on family.agent = counted.agent
    group by family.record
)

select
    agent.record,
    agent.tokens > coalesce(counted_below.tokens, 0) as is_lost
from agent
left join counted_below on agent.record = counted_below.record
where agent.is_left_out
