"""Every error dcsurgery raises on purpose.

DcSurgeryError                  message + hint; the CLI prints both and exits 1
├── RequestError                an option or argument that cannot be meant
│   └── FieldError                  a value that a field of a connector or training cannot have
├── CheckpointError             something about the files of a model
│   ├── CheckpointNotFoundError     no such folder, Hub repository, revision or file
│   ├── MalformedCheckpointError    files that contradict themselves or each other
│   └── UnsafeFormatError           files that could run code or leave the folder
├── UnknownArchitectureError    a model class dcsurgery has no anatomy for
├── AnatomyError                config and tensors disagree about the model
├── PlanError                   this connector cannot be installed in this model
├── OutputExistsError           the output is there already, or someone else is writing it
├── TrainingError               fine-tuning could not start or go on
├── PublishError                the Hub refused or lost something
└── VerificationError           a check could not be made (one that fails is a report)
"""

from __future__ import annotations

from typing import Any


class DcSurgeryError(Exception):
    """Base of all errors meant for people: `message` says what is wrong, `hint` what to do next."""

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:
        """Let an error come from another process, whatever its class is made of."""
        return _again, (type(self), self.args), vars(self)


def _again(kind: type[DcSurgeryError], args: tuple[Any, ...]) -> DcSurgeryError:
    return kind.__new__(kind, *args)


class RequestError(DcSurgeryError):
    """An option or argument that cannot be meant."""


class FieldError(RequestError, ValueError):
    """A value that a field cannot have. A ValueError, so that pydantic says where it was found."""


class CheckpointError(DcSurgeryError):
    """Something is wrong with the files of a model."""


class CheckpointNotFoundError(CheckpointError):
    """No such folder, Hub repository, revision or file."""


class MalformedCheckpointError(CheckpointError):
    """Files that contradict themselves or each other."""


class UnsafeFormatError(CheckpointError):
    """Files that could run code when read, or paths that leave the model folder."""


class UnknownArchitectureError(DcSurgeryError):
    """A model class dcsurgery has no anatomy for."""


class AnatomyError(DcSurgeryError):
    """The config and the tensors disagree about the model."""


class PlanError(DcSurgeryError):
    """The requested connector cannot be installed in this model."""


class OutputExistsError(DcSurgeryError):
    """The output exists already, or another process is writing it."""


class TrainingError(DcSurgeryError):
    """Fine-tuning could not start or go on."""


class PublishError(DcSurgeryError):
    """Publishing to the Hub did not complete."""


class VerificationError(DcSurgeryError):
    """A check could not be made at all; a check that fails is reported instead."""
