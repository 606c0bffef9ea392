"""Marked state in Redis: rows and counters that advance together with a mark of each source partition.

The only package that imports redis. It knows bytes, keys and marks, and nothing of features or windows.
"""
