"""The error tree.

::

    BrainstageError                  .scan and .stage are filled in by the runner
    |- InputError (ValueError)       what the user gave is not usable
    |  |- UsageError                 options that contradict each other
    |  |- ConfigError                a configuration file or value
    |  |- ManifestError              data_manifest.csv or participants.tsv
    |  |- BidsError                  the directory is no BIDS dataset
    |  |- InputMissingError          a path that does not exist, a dataset without T1w scans
    |  |- NothingSelectedError       the filters leave no scan
    |  |- ModelError                 a model directory that cannot be used, or not for these scans
    |  `- ImageError                 one image file
    |     |- GeometryError           where its voxels lie
    |     |- IntensityError          what its voxels hold
    |     `- SourceChangedError      it is not the file any more that it was
    |- ToolError (RuntimeError)      the installation
    |  |- ToolNotFoundError
    |  |- WeightsError               pretrained weights: altered, of another network
    |  |  `- WeightsMissingError     nowhere to be found
    |  |- DeviceError
    |  `- EngineError                no scheduler, no cluster
    |- StageError                    a stage ran and its result cannot be used
    |  |- BrainExtractionError
    |  |- BiasFieldError
    |  |- RegistrationError
    |  `- InferenceError
    |- OutputError (OSError)         what cannot be written
    |  `- StorageError               a full disk, a broken file system
    |- LeaseHeldError                another run does not give back what this one waits for
    `- LeaseLostError                another run took over what this one was at

A message says which value came, which is allowed and what to do. Which scan and which stage it was
is attached where it is known, by :func:`attributed`, not by every raiser.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import ClassVar


class ExitCode(IntEnum):
    """Exit codes of the command line (BIDS execution specification, draft; BSD ``sysexits.h`` from 64 on)."""

    DONE = 0
    SOME_SCAN_FAILED = 1
    NOT_BIDS = 16
    NOTHING_SELECTED = 18
    WRONG_USAGE = 64
    BAD_DATA_FILE = 65
    INPUT_MISSING = 66
    CANNOT_CREATE_OUTPUT = 73
    IO_ERROR = 74
    TEMPORARY = 75
    DEFECT = 70
    INTERRUPTED = 130
    TERMINATED = 143


class BrainstageError(Exception):
    """Base of everything this program raises on purpose.

    Attributes
    ----------
    scan : str or None
        Key of the scan, such as ``sub-01_ses-M12``, where it is known.
    stage : str or None
        Name of the stage that raised, where it is known.
    exit_code : ExitCode
        What the command line exits with when this error ends it.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.SOME_SCAN_FAILED

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.scan: str | None = None
        self.stage: str | None = None

    @property
    def message(self) -> str:
        """The sentence for the user, on one line."""
        return " ".join(str(self.args[0]).split())

    def __reduce__(self) -> tuple[type[BrainstageError], tuple[str], dict[str, str | None]]:
        """Keep scan and stage when the error travels between processes."""
        return type(self), (str(self.args[0]),), {"scan": self.scan, "stage": self.stage}


class InputError(BrainstageError, ValueError):
    """What the user gave is not usable."""

    exit_code = ExitCode.BAD_DATA_FILE


class UsageError(InputError):
    """Options that are unknown or contradict each other."""

    exit_code = ExitCode.WRONG_USAGE


class ConfigError(InputError):
    """A configuration file or one of its values."""


class ManifestError(InputError):
    """A table that describes scans or participants."""


class BidsError(InputError):
    """The directory is no BIDS dataset."""

    exit_code = ExitCode.NOT_BIDS


class InputMissingError(InputError):
    """A path that does not exist, or a dataset without any T1w scan."""

    exit_code = ExitCode.INPUT_MISSING


class NothingSelectedError(InputError):
    """The filters leave no scan."""

    exit_code = ExitCode.NOTHING_SELECTED


class ModelError(InputError):
    """A model directory that cannot be used, or not for these scans."""


class ImageError(InputError):
    """One image file cannot be used."""


class GeometryError(ImageError):
    """Where the voxels of an image lie is unknown or impossible."""


class IntensityError(ImageError):
    """The voxels of an image hold values that no T1w scan has."""


class SourceChangedError(ImageError):
    """An image file was written to or replaced while it was at work; trying again is the remedy."""


class ToolError(BrainstageError, RuntimeError):
    """The installation cannot do what is asked."""

    exit_code = ExitCode.INPUT_MISSING


class ToolNotFoundError(ToolError):
    """A library or one of its files is absent."""


class WeightsError(ToolError):
    """Pretrained weights are absent, altered, or of another network."""

    exit_code = ExitCode.BAD_DATA_FILE


class WeightsMissingError(WeightsError):
    """Pretrained weights are nowhere to be found, and could not be fetched."""

    exit_code = ExitCode.INPUT_MISSING


class DeviceError(ToolError):
    """The device asked for is not there."""

    exit_code = ExitCode.WRONG_USAGE


class EngineError(ToolError):
    """The workers that were asked for cannot be had, or were lost."""

    exit_code = ExitCode.TEMPORARY


class StageError(BrainstageError):
    """A stage ran, and its result cannot be used."""


class BrainExtractionError(StageError):
    """No plausible brain was found."""


class BiasFieldError(StageError):
    """No plausible bias field was found."""


class RegistrationError(StageError):
    """The brain could not be brought to the template."""


class InferenceError(StageError):
    """The network gave no usable answer."""


class OutputError(BrainstageError, OSError):
    """An output cannot be created."""

    exit_code = ExitCode.CANNOT_CREATE_OUTPUT


class StorageError(OutputError):
    """The disk is full or the file system failed; the same command resumes the run."""

    exit_code = ExitCode.IO_ERROR


class LeaseLostError(BrainstageError):
    """Another run took over what this one was at; nothing of it may be published."""

    exit_code = ExitCode.TEMPORARY


class LeaseHeldError(BrainstageError):
    """Another run, alive, does not give back what this one waits for."""

    exit_code = ExitCode.TEMPORARY


_STORAGE_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO})


def output_error(path: Path, error: OSError) -> OutputError:
    """Turn an ``OSError`` of writing into the error that says what to do.

    Parameters
    ----------
    path : Path
        What was being written; only its name reaches the message.
    error : OSError
        As the operating system gave it.
    """
    if error.errno in _STORAGE_ERRNOS:
        return StorageError(
            f"cannot write {path.name}: {error.strerror}. Free some space and run the same command again; "
            "finished work is kept."
        )
    return OutputError(
        f"cannot create {path.name}: {error.strerror or error}. Choose an output directory that you may write to."
    )


@contextmanager
def attributed(scan: str, stage: str) -> Iterator[None]:
    """Note on any :class:`BrainstageError` raised inside which scan and stage it came from."""
    try:
        yield
    except BrainstageError as error:
        error.scan = error.scan or scan
        error.stage = error.stage or stage
        raise
