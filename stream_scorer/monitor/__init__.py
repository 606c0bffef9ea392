"""The side stream: joins scores with labels, counts windows, and judges drift and false-positive rates.

It knows the scorer only through topics. Counting lives in `tally`, judging in pure functions (`drift`, `rates`,
`windows`); `app` and `transport` are the only modules that know Faust. Nothing here acts on what it sees.
"""
