"""The ensemble: its manifest, members, calibrators and combiner, from feature matrix to score and contributions.

Also the reference profile for drift, and the MLflow registry (`registry`, the only module that imports mlflow). This
package depends neither on Kafka and Redis nor on how features are computed.
"""
