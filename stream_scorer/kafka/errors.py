"""Maps librdkafka's errors to the errors of the product.

See KIP-98, KIP-447 and "Transactional producer" in its `INTRODUCTION.md`.
"""

from __future__ import annotations

from confluent_kafka import KafkaError, KafkaException

from stream_scorer.errors import AccessDenied, BrokerUnavailable, StreamScorerError, UsageError

# Errors that pass by themselves. `is_passing` covers them all. librdkafka goes on after most of them, so each reader
# names those that it ignores or repeats, and raises the others.
# A connection is lost; no answer from a broker, or no address of its name.
NO_CONNECTION = {KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT}
NO_ANSWER = NO_CONNECTION | {KafkaError._TIMED_OUT, KafkaError._RESOLVE}
# A partition has no leader: it is new, or a broker restarts.
NO_LEADER = {KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE}
# The coordinator of a group or of a transactional id moves, or loads its state.
COORDINATOR_MOVES = {
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
}
_UNREACHABLE = NO_ANSWER | {KafkaError._UNKNOWN_BROKER}
# A broker answers, but cannot do it yet: a coordinator or leader moves, replicas are missing, a transaction has to end.
_NOT_YET = {
    *NO_LEADER,
    *COORDINATOR_MOVES,
    KafkaError._WAIT_COORD,
    KafkaError.BROKER_NOT_AVAILABLE,
    KafkaError.CONCURRENT_TRANSACTIONS,
    KafkaError.KAFKA_STORAGE_ERROR,
    KafkaError.NETWORK_EXCEPTION,
    KafkaError.NOT_ENOUGH_REPLICAS,
    KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
    KafkaError.OFFSET_NOT_AVAILABLE,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.UNSTABLE_OFFSET_COMMIT,
}
_NO_TOPIC = {
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
}
# The position is not in the log. librdkafka reports this once, and then reads nothing ever after.
NO_OFFSET = {KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE}
# Authorization failures: what the principal may not use.
_DENIED = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "the topic",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "the consumer group",
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: "the transactional id",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "the cluster",
}


def is_denied(error: KafkaError) -> bool:
    """Whether an ACL forbids the operation."""
    return error.code() in _DENIED


def is_lasting(error: KafkaError) -> bool:
    """Whether every other attempt of this process fails too: an ACL forbids it, or our clock is ahead."""
    return is_denied(error) or error.code() == KafkaError.INVALID_TIMESTAMP


def is_passing(error: KafkaError) -> bool:
    """Whether the error goes away without us: `as_domain_error` makes it a `BrokerUnavailable`."""
    return error.code() in _UNREACHABLE or error.code() in _NOT_YET or error.retriable()


def kafka_error(exception: KafkaException) -> KafkaError:
    """The `KafkaError` inside a `KafkaException`."""
    error = exception.args[0]
    assert isinstance(error, KafkaError)
    return error


def as_domain_error(error: KafkaError, doing: str, bootstrap: str = "") -> StreamScorerError:
    """The product's error for a librdkafka error, with a readable message and a hint."""
    where = f" at {bootstrap}" if bootstrap else ""
    if error.code() in _UNREACHABLE:
        return BrokerUnavailable(
            f"no Kafka broker answers{where} ({doing})",
            hint="Is it running? `stream-scorer stack up`, or check the setting `kafka.bootstrap`.",
        )
    if error.code() in _NO_TOPIC:
        return UsageError(f"{doing}: {error.str()}", hint="Create it: `stream-scorer topics create`.")
    if is_denied(error):
        return AccessDenied(
            f"Kafka{where} does not permit this user to {doing}: an ACL for {_DENIED[error.code()]} is missing",
            hint="`stream-scorer topics acls --role ROLE` prints the ACLs of each role.",
        )
    if error.code() == KafkaError.INVALID_TIMESTAMP:
        return StreamScorerError(
            f"this machine's clock is ahead of Kafka's{where}, which refuses the times of our records ({doing})",
            hint="Set the clock, for example by NTP. Kafka accepts records that are at most "
            "`message.timestamp.after.max.ms` ahead, by default an hour.",
        )
    if is_passing(error):
        return BrokerUnavailable(
            f"Kafka{where} cannot {doing} now: {error.name()}: {error.str()}",
            hint="Are all brokers running? Their logs say what they wait for.",
        )
    return StreamScorerError(f"{doing}: {error.name()}: {error.str()}")
