"""The pipeline spec: what a user declares about their data, in one YAML file. No behaviour beyond reading it lives here."""

from stream_scorer.spec.load import load_spec, parse_spec
from stream_scorer.spec.model import PipelineSpec

__all__ = ["PipelineSpec", "load_spec", "parse_spec"]
