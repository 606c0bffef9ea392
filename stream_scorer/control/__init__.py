"""Control: commands, the serving state that results from them, the scorer that follows it, and the watch on probations.

Scoring is in `pipeline`; loading and combining members is in `ensemble`.
"""
