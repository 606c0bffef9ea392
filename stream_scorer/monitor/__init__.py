"""The monitor: joins scores with labels, counts windows, and computes drift and false-positive rates.

It reads the scorer's topics only. `tally` counts; `drift`, `rates` and `windows` are pure functions; only `app` and
`transport` import Faust. This package reports and never submits commands: the watch in `control` does.
"""
