"""Feature views: from an entity's packed row to the feature matrix, the same for serving, replay and training.

Rows are read and written through a `RowStore` (see `stream_scorer.state`). This package does not use Kafka or Redis.
"""
