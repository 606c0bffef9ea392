"""The pipeline spec: what a user declares about their data, in one YAML file. Read and checked here, and no more."""

from stream_scorer.spec.load import load_spec, parse_spec
from stream_scorer.spec.model import CheckedSpec, PipelineSpec

__all__ = ["CheckedSpec", "PipelineSpec", "load_spec", "parse_spec"]
