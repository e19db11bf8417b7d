-- The requests that organizations lost of one day, each with the event files that held it.
create or replace temp table lost_request (
    organization_id varchar,
    request_id varchar,
    artifact varchar
)
