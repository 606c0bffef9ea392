"""Replay: runs history through the stages of the scorer, in one process, and writes the results to files.

Records come from topics or files in a defined order. Feature rows are kept in memory: a replay reads only the logs of a
live system and writes nothing to it. The stages themselves are in `stream_scorer.pipeline`.
"""
