-- How many organizations' usage of the day changed.
-- Inputs: changed.
select count(*) as organizations
from changed
