"""The gate: checks a candidate against declared rules before it may serve (ADR 0042).

Each module measures one kind of rule; `run` measures all of them. Rules files are in `stream_scorer.spec.gate_rules`.
"""
