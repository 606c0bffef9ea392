"""The metric catalogue, logs, and the health server. This package contains no decisions."""
