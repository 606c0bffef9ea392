"""Archives of decisions that are sealed, and checked without any service (ADR 0043).

Export, seal, reader and checks live here; recomputation is `stream_scorer.replay`, the serving state
`stream_scorer.control`.
"""
