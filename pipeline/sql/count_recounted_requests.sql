-- How many accepted lines of the recounted days there are.
-- Inputs: recounted_request.
select count(*) as requests
from recounted_request
