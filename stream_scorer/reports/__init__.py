"""Reports of a run: metrics from recorded columns, plots, HTML pages and terminal text.

Nothing here connects to Kafka, Redis or MLflow: every figure is a function of a `Recording`.
"""
