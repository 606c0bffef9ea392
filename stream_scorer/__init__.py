"""Streaming fraud scoring: Kafka in, an explained ensemble score out, exactly once.

The package's map is in ARCHITECTURE.md; nothing is imported here, so that a reader pays only for what is used.
"""

__version__ = "0.1.0"
