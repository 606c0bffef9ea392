"""What serves: the state that the control log leads to, the scorer that follows it, and giving commands.

How transactions are scored by what serves is the pipeline's; what a version is made of is the ensemble's.
"""
