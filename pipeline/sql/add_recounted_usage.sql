-- Inputs: recounted_batch (columns of recounted_usage).
insert into recounted_usage by name
select *
from recounted_batch
