"""Ensembles of models that were trained elsewhere: from a YAML file and model files to an ensemble's folder.

Nothing here trains a model. Calibrators, weights and thresholds are given, or fitted on later history (ADR 0040).
"""
