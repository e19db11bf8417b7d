-- Grain: organization, API key, model. A day as it is published.
-- Inputs: published (a month of api_key_day), $day.
select *
from published
where day = $day
order by
    organization_id,
    api_key_id,
    model nulls first
