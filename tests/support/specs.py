"""Small pipeline specs for tests: without entities, with a card, for training; with two entities, for features."""

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


def entities_spec(rest: str, **fields: str) -> str:
    """YAML of a spec of events with the entities `who` and `where`; `fields` replace or add kinds of fields."""
    kinds = {"id": "string", "at": "time", "amount": "integer", "who": "string", "where": "string, optional: true"}
    lines = "".join(f"    {name}: {{type: {kind}}}\n" for name, kind in (kinds | fields).items())
    return f"""
name: small
version: 1
transaction:
  id: id
  time: at
  value: amount
  fields:
{lines}entities: {{who: {{field: who}}, where: {{field: where}}}}
partition_entity: who
{rest}"""


def card_spec(rest: str, **fields: str) -> str:
    """YAML of a spec of transactions of cards, counted by day; `fields` adds kinds of fields."""
    lines = "".join(f"    {name}: {{type: {kind}}}\n" for name, kind in fields.items())
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
    card: {{type: string}}
    amount: {{type: integer, min: 0}}
{lines}entities: {{card: {{field: card}}}}
partition_entity: card
views:
  - {{name: card, entity: card, windows: [1d], aggregates: [count]}}
policy: {{version: p1, review: 0.3, block: 0.8}}
{rest}"""
