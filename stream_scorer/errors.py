"""Every error the product raises on purpose, in one tree.

::

    StreamScorerError                exit 1   something failed
    ├── UsageError                   exit 2   a person's mistake: wrong flag, setting or file
    │   ├── SettingsError                     a setting is missing, malformed or contradictory
    │   ├── SpecError                         the pipeline spec is wrong; carries the path of the bad node
    │   ├── ArtifactError                     a model, manifest or alias is missing, altered or malformed
    │   ├── RecordsDeleted                    retention has deleted the start of a range of a topic
    │   └── LogTruncated                      a partition of the input lost records that the group had read
    ├── UnavailableError             exit 1   a service does not answer
    │   ├── BrokerUnavailable
    │   ├── StateUnavailable                  Redis
    │   │   └── StateDenied      exit 4   Redis refuses the credentials, the certificate or the operation
    │   └── RegistryUnavailable               MLflow
    ├── AccessDenied                 exit 4   a service refuses the credentials, the certificate or the operation
    ├── ReaderLost                   exit 1   a reader of a topic reads nothing any more: another one must read again
    ├── StateGap                     exit 1   Redis does not hold what the log says it should: resync needed
    ├── ExpireRefused                exit 1   a pass would delete most feature rows: nothing was deleted
    ├── TransactionAborted           exit 1   a Kafka transaction was aborted: resync needed
    ├── OffsetsBehind                exit 1   the broker reports older offsets than were committed: resync later
    │   └── StartPending                      another scorer commits where a new group begins: resync later
    ├── RecordError                           one input record is bad: it goes to the dead-letter topic, never up
    └── CheckFailed                  exit 3   a check found a difference

`UsageError` and `UnavailableError` reach a person as one message and a hint, never as a traceback.
"""

from __future__ import annotations


class StreamScorerError(Exception):
    """Base of the tree. `hint` is what the reader can do about it, in one sentence."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


def install_hint(*extras: str) -> str:
    """The hint for packages that are not installed. The project is not on a package index, so no name is given."""
    return (
        "Install the file of requirements/ that contains it (docs/operations.md), or without pins, in a checkout of "
        f"the release: pip install '.[{','.join(extras)}]'."
    )


class UsageError(StreamScorerError):
    """A person's mistake: a wrong flag, setting or file."""

    exit_code = 2


class SettingsError(UsageError):
    """A setting is missing, malformed or contradicts another."""


class SpecError(UsageError):
    """The pipeline spec is wrong. `path` names the node, as in ``views[2].windows[0]``."""

    def __init__(self, message: str, *, path: str = "", hint: str = "") -> None:
        super().__init__(f"{path}: {message}" if path else message, hint=hint)
        self.path = path


class ArtifactError(UsageError):
    """A model, manifest or alias is missing, altered or malformed. `code` is stable and documented (docs/errors.md)."""

    def __init__(self, message: str, *, code: str = "artifact_invalid", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code

    def __str__(self) -> str:
        return f"{self.message} [{self.code}]" + (f"\n  {self.hint}" if self.hint else "")


class RecordsDeleted(UsageError):
    """Retention has deleted the start of a range of a topic."""


class LogTruncated(UsageError):
    """Kafka has lost the end of a partition that the group had read. New records get the same offsets again."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(
            f"{where} {what}: Kafka has lost records, or the topic was created again. Records that were written since "
            "then at the lost offsets would never be scored",
            hint="If the topic was created again, restart all scorers. Kafka loses records by an unclean leader "
            "election or a power cut of all brokers: see docs/operations.md, If Kafka loses records of the input.",
        )


class UnavailableError(StreamScorerError):
    """A service does not answer."""


class BrokerUnavailable(UnavailableError):
    """The Kafka broker does not answer."""


class StateUnavailable(UnavailableError):
    """Redis does not answer in time, or answers that it cannot serve."""


class StateDenied(StateUnavailable):
    """Redis refuses the credentials, the certificate or the operation. A scorer goes on without features."""

    exit_code = 4


class RegistryUnavailable(UnavailableError):
    """The MLflow registry does not answer."""


class AccessDenied(StreamScorerError):
    """A service refuses the credentials, the certificate or the operation."""

    exit_code = 4


class ReaderLost(StreamScorerError):
    """A reader of a topic reads nothing any more, and waiting does not help: another reader must read again.

    Its client has stopped fetching, or the topic was created again or has lost records.
    """


class StateGap(StreamScorerError):
    """Redis does not hold what the log says it should (an applied offset is missing or too low): resync."""


class ExpireRefused(StreamScorerError):
    """A pass would delete most feature rows, so it deleted none."""


class TransactionAborted(StreamScorerError):
    """A Kafka transaction was aborted or its outcome is unknown: resync from the committed offsets."""


class OffsetsBehind(StreamScorerError):
    """The broker reports older offsets of the group than were committed: resync when it has loaded them."""


class StartPending(OffsetsBehind):
    """The group is new, and the scorer of another partition has still to commit where it begins: resync then."""


# The codes of dead letters: stable, and documented in docs/errors.md.
RECORD_CODES = (
    "empty_value", "value_too_large", "not_utf8", "not_json", "missing_field", "wrong_type", "out_of_range",
    "envelope_too_large", "time_out_of_range",
)  # fmt: skip


class RecordError(StreamScorerError):
    """One input record is bad. `code` is one of `RECORD_CODES`; `path` names the field, as in ``$.amount``."""

    def __init__(self, code: str, message: str, *, path: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.path = path


class CheckFailed(StreamScorerError):
    """A check found a difference."""

    exit_code = 3


class Stopped(Exception):
    """A stop was requested while a call waited for a service (`WakeupException` of Kafka's Java consumer).

    It is not an error, and not in the tree: handlers of errors let it pass.
    """
