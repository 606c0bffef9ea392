"""Training: from labelled history to an ensemble's folder. Needs the extra `train` (scikit-learn).

Features come from the serving kernel and scoring from `stream_scorer.ensemble`. This package contains the steps in
between: the split by time, the fit of members, calibrators and weights, and their evaluation on held-out rows.
"""
