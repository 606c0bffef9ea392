"""Assumptions of rates for tests."""

from __future__ import annotations

from stream_scorer.monitor.rates import Assumptions

# Labels are right, and a silent approved transaction is genuine.
FACE_VALUE = Assumptions(0.0, 0.0, 0.0)
