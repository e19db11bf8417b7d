-- The functions whose value depends on nothing but their arguments: not on the clock, chance, settings or other tables.
select distinct lower(function_name) as name
from duckdb_functions()
where
    (function_type in ('scalar', 'aggregate') and stability = 'CONSISTENT' and function_name not like 'json_serialize%')
    or (
        function_type = 'macro'
        and schema_name = 'main'
        and not regexp_matches(lower(macro_definition), 'current_|pragma|select|error')
    )
