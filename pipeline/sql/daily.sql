-- Grain: organization, day, API key, model. A month's days, decoded once for the four rollups that are made of them.
-- Inputs: day_files.
create or replace temp table daily as
select *
from day_files
