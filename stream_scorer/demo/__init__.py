"""`stream-scorer demo`: the whole pipeline with real services, from history to a report with its own checks.

This package starts the parts in order and reads their topics as an outside consumer; `reports` makes the report.
"""
