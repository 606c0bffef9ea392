"""Evaluation: several versions of an ensemble over a range of history, judged by the labels of a stated time.

One pass computes the features once and calls each distinct member once; the results go to files in pieces. The figures
are computed from these pieces. The pages and tables are in `stream_scorer.reports`. Models are not fitted here.
"""
