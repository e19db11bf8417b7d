-- How many lines there are.
-- Inputs: events.
select count(*) as lines
from events
