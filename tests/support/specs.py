"""Small pipeline specs for tests: without entities, with a card, for training; with two entities, for features."""

from __future__ import annotations

_TRANSACTION = {"event_id": "string", "event_time": "time", "amount": "integer"}


def _spec(name: str, fields: dict[str, str], rest: str) -> str:
    """YAML of a spec; `fields` with their kinds begin with the id, the time and the value."""
    one, time, value = list(fields)[:3]
    lines = "".join(f"    {field}: {{type: {kind}}}\n" for field, kind in fields.items())
    return f"""
name: {name}
version: 1
transaction:
  id: {one}
  time: {time}
  value: {value}
  fields:
{lines}{rest}"""


def numbers_spec(names: str, rest: str) -> str:
    """YAML of a spec: a number field for each letter of `names`, a feature ``<letter>_value`` of each, and `rest`."""
    derived = "".join(f"  - {{name: {name}_value, function: value, of: [{name}]}}\n" for name in names)
    return _spec("tiny", _TRANSACTION | dict.fromkeys(names, "number"), f"derived:\n{derived}{rest}")


def entities_spec(rest: str, **fields: str) -> str:
    """YAML of a spec of events with the entities `who` and `where`; `fields` replace or add kinds of fields."""
    kinds = {"id": "string", "at": "time", "amount": "integer", "who": "string", "where": "string, optional: true"}
    entities = "entities: {who: {field: who}, where: {field: where}}\npartition_entity: who\n"
    return _spec("small", kinds | fields, entities + rest)


def card_spec(rest: str, **fields: str) -> str:
    """YAML of a spec of transactions of cards, counted by day; `fields` adds kinds of fields."""
    kinds = _TRANSACTION | {"amount": "integer, min: 0", "card": "string"} | fields
    entities = """entities: {card: {field: card}}
partition_entity: card
views:
  - {name: card, entity: card, windows: [1d], aggregates: [count]}
policy: {version: p1, review: 0.3, block: 0.8}
"""
    return _spec("tiny", kinds, entities + rest)
