-- What mapped.sql and accept.sql say of each count.

-- The JSON value of a text: a number where the text is an integer, since SQL and CSV give numbers as text; else a string.
create or replace temp macro integer_as_json(value) as
case when regexp_full_match(value, '-?[0-9]+') then value else cast(to_json(value) as varchar) end;

-- Whether a JSON value is certainly a count or missing. number: the value as a bigint; null where the cast does not take it.
create or replace temp macro is_count(number, value) as
case when number is null then value is null or value = 'null' else number >= 0 and cast(number as varchar) = value end
