-- Grain: agent that is no request, because a call or another agent descends from it. An embedding does not count here: its tokens are
-- no part of an agent's. An agent on a circle of parents descends from itself only by mistake, and is a request.
-- is_lost: the agent has tokens, and nothing that descends from it has any, so they count nowhere.
-- Inputs: trace_span.
create or replace temp table trace_agent as
with recursive above as (
    select
        parent as record,
        coalesce(input_tokens, 0) + coalesce(output_tokens, 0) > 0 as has_tokens_below
    from trace_span
    where (role = 'agent' or (role = 'call' and not is_embedding)) and parent is not null

    union

    select
        trace_span.parent,
        above.has_tokens_below
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
        max(coalesce(input_tokens, 0) + coalesce(output_tokens, 0)) > 0 as has_tokens
    from trace_span
    where role = 'agent'
    group by record
)

select
    agent.record,
    any_value(agent.has_tokens) and not bool_or(above.has_tokens_below) as is_lost
from agent
join above using (record)
where agent.record not in (select climbed.record from climbed where climbed.agent = climbed.record)
group by agent.record
