"""`stream-scorer demo`: the whole story on real parts, from history to a report that judges itself.

Here lives starting the parts in order and watching them from outside; what the report says is made in `reports`.
"""
