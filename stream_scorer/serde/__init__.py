"""From bytes to columns: decoders generated from a pipeline spec, independent of topics and brokers."""
