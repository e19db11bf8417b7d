-- Adds the requests with an API key that some event files hold of organizations with fewer requests on the day $day.
-- Inputs: named_events (event files that left the day, with their names), lowered.
insert into lost_request
select distinct
    organization_id,
    request_id,
    parse_filename(filename) as artifact
from named_events
semi join (select organization_id from lowered where day = $day) using (organization_id)
where api_key_id is not null
