"""What a run showed: figures from recorded columns, plots, and the pages and lines that carry them.

Nothing here talks to Kafka, Redis or MLflow, and nothing decides: it judges what was recorded.
"""
