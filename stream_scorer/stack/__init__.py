"""The local stack: real Kafka (KRaft), Redis and MLflow as plain processes on loopback, without Docker.

This package starts, supervises and stops them. It contains no clients of those services: it imports neither
confluent_kafka nor redis nor mlflow. `LocalStack` ends with its owner; `up` and `down` outlive the shell.
"""

from stream_scorer.stack.detached import StackStatus, down, read_state, status, up
from stream_scorer.stack.local import LocalStack
from stream_scorer.stack.model import SERVICES, StackAddresses

__all__ = [
    "SERVICES",
    "LocalStack",
    "StackAddresses",
    "StackStatus",
    "down",
    "read_state",
    "status",
    "up",
]
