"""Training: from labelled history to an ensemble's folder. Needs the extra `train` (scikit-learn).

Features come from the serving kernel and scoring from `stream_scorer.ensemble`; what lives here is what happens in
between: splitting by time, fitting members, calibrators and weights, and judging them on rows none of them has seen.
"""
