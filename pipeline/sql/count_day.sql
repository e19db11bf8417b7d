-- How the accepted lines of a day were counted: one row.
-- Inputs: events, copies, usage_of_day. Duplicates are counted where they were found, not inferred from the rest.
select
    (select count(*) from events) as accepted,
    (select cast(coalesce(sum(requests), 0) as bigint) from usage_of_day where api_key_id is not null) as counted,
    (select count(*) from copies where place > 1) as duplicate,
    (select count(*) from copies where conflicting) as conflicting,
    (select cast(coalesce(sum(requests), 0) as bigint) from usage_of_day where api_key_id is null) as session
