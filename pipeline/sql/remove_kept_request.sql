-- Removes from the lost requests those that other event files hold, which count on the day now.
-- Inputs: kept_events (event files).
delete from lost_request
using kept_events
where
    lost_request.organization_id = kept_events.organization_id
    and lost_request.request_id = kept_events.request_id
    and kept_events.api_key_id is not null
