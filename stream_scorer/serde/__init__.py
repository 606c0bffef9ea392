"""Bytes to columns: the decoder made from a pipeline spec. It knows no topic and no broker."""
