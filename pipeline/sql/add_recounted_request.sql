-- Inputs: recounted_batch (columns of recounted_request).
insert into recounted_request by name
select *
from recounted_batch
