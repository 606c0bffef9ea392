"""State in Redis: feature rows and counters that advance together with one applied offset per source partition.

The only package that imports redis. It handles bytes, keys and offsets. Feature views and windows are elsewhere.
"""
