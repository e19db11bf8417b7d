-- The syntax tree of the select statements in $text, as JSON; or what is wrong with them.
select json_serialize_sql(cast($text as varchar)) as tree
