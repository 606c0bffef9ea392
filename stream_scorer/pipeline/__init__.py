"""The scoring path: a micro-batch and the stages it passes, `decode -> enrich -> score -> publish -> commit -> apply`.

One file a stage, one interface for all; stages never import each other, the processor runs them in order.
"""
