-- The functions whose value depends on nothing but their arguments: not on the clock, chance, settings or other tables.
-- DuckDB's catalog takes some for such that are not: the local clock, an age until today, the release, a sample.
select distinct lower(function_name) as name
from duckdb_functions()
where
    (
        function_type in ('scalar', 'aggregate')
        and stability = 'CONSISTENT'
        and not regexp_full_match(function_name, 'json_serialize.*|current_.*|age|version|reservoir_quantile')
    )
    or (
        function_type = 'macro'
        and schema_name = 'main'
        and not regexp_matches(lower(macro_definition), 'current_|pragma|select|error')
    )
