"""The ensemble: its manifest, members, calibrators and combiner, from feature matrix to score and contributions.

Also the reference profile that drift is measured against, and the MLflow registry (`registry`, the only module that
imports mlflow). Nothing here knows of Kafka, Redis or how features are made.
"""
