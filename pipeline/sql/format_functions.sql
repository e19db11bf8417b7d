-- Functions that the SQL of every format may call, beside DuckDB's own. They see one value and depend on nothing else.
-- JSON's arrow `->>` gives whatever stands in a field as text, and DuckDB's casts take '5_00', '+7', ' 7 ' and '.7' for numbers.

-- Whether a text is not a JSON object, a JSON array, true or false. pipeline/line.py holds the fields of text to the same rule.
create macro is_text(value) as
not regexp_full_match(
    value,
    '(?s)true|false|\{(?:".*)?\}|\[(?:|["\[{].*|(?:-?[0-9][0-9.eE+-]*|true|false|null)(?:,.*)?)\]'
);

-- A text that is a number as JSON writes one; null for any other text. A longer exponent is beyond every amount, and some casts.
create macro number_text(value) as
case when regexp_full_match(value, '-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,4})?') then value end;

-- A cost rounded to 12 decimals, half to even. A negative number and a text that is no number stay as they are, so that the
-- rule for costs refuses them: a tiny negative cost must not become 0.
create macro rounded_cost(value) as
case
    when starts_with(value, '-') then value
    else coalesce(cast(round_even(try_cast(number_text(value) as decimal(38, 30)), 12) as varchar), value)
end;

-- The same of a cost in cents. A number that the cast does not hold must not stay, since it would count as whole units.
create macro rounded_cost_of_cents(value) as
case
    when number_text(value) is null or starts_with(value, '-') then value
    else coalesce(cast(round_even(try_cast(value as decimal(30, 20)) * 0.01, 12) as varchar), value || ' cents')
end
