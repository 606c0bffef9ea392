"""The pipeline spec: the user's declaration of their data in one YAML file. This package only reads and checks it."""

from stream_scorer.spec.load import load_spec, parse_spec
from stream_scorer.spec.model import CheckedSpec, PipelineSpec

__all__ = ["CheckedSpec", "PipelineSpec", "load_spec", "parse_spec"]
