-- Some of a day's events, to lie in one file.
-- Inputs: some_event_files.
select *
from some_event_files
