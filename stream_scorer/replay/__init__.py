"""Replay: history through the very stages that serve, in this process alone, into files.

Records come from topics or files in one stated order; rows live in memory, so nothing live is read but the logs and
nothing live is written. What a stage computes is not here: see `stream_scorer.pipeline`.
"""
