"""The scoring path: a micro-batch and the stages it passes, `decode -> enrich -> score -> publish -> commit -> apply`.

Each stage is one file and implements `batch.Stage`. Stages never import each other; the processor runs them in order.
"""
