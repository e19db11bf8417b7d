-- Requests as CSV: the header names the fields of the native format, in any order. An empty cell is a missing field.
-- reads: csv
-- prices: record
-- units: record
-- rounds: nothing
-- A template for other tables: copy it to formats/ of the data folder under another name, and name other columns.
select
    line,
    nullif(record->>'request_id', '') as request_id,
    nullif(record->>'timestamp', '') as timestamp,
    nullif(record->>'organization_id', '') as organization_id,
    nullif(record->>'api_key_id', '') as api_key_id,
    nullif(record->>'cost', '') as cost,
    nullif(record->>'synapses', '') as synapses,
    nullif(record->>'neurons', '') as neurons,
    nullif(record->>'model', '') as model,
    nullif(record->>'endpoint', '') as endpoint,
    nullif(record->>'status', '') as status,
    nullif(record->>'input_tokens', '') as input_tokens,
    nullif(record->>'output_tokens', '') as output_tokens,
    nullif(record->>'cached_input_tokens', '') as cached_input_tokens,
    nullif(record->>'cache_write_tokens', '') as cache_write_tokens,
    nullif(record->>'reasoning_tokens', '') as reasoning_tokens
from records
