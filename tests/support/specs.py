"""Pipeline specs for tests of training, which need numbers and no entities."""

from __future__ import annotations


def numbers_spec(names: str, rest: str) -> str:
    """YAML of a spec: a number field for each letter of `names`, a feature ``<letter>_value`` of each, and `rest`."""
    fields = "".join(f"    {name}: {{type: number}}\n" for name in names)
    derived = "".join(f"  - {{name: {name}_value, function: value, of: [{name}]}}\n" for name in names)
    return f"""
name: tiny
version: 1
transaction:
  id: event_id
  time: event_time
  value: amount
  fields:
    event_id: {{type: string}}
    event_time: {{type: time}}
    amount: {{type: integer}}
{fields}derived:
{derived}{rest}"""
