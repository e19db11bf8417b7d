-- Adds what the organizations whose usage changed have in some event files, as a sum over hashes of their events: equal
-- for equal events in whatever order.
-- Inputs: named_events (event files, with their names), changed.
insert into content_share
select
    organization_id,
    parse_filename(filename) as artifact,
    sum(
        hash(
            request_id,
            timestamp,
            api_key_id,
            cost,
            synapses,
            neurons,
            model,
            endpoint,
            status,
            input_tokens,
            output_tokens,
            cached_input_tokens,
            cache_write_tokens,
            reasoning_tokens,
            currency
        )
    ) as fingerprint
from named_events
semi join changed using (organization_id)
group by
    organization_id,
    artifact
