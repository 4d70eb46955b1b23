"""A stage, the key of its result, and the marker that says the result is complete."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brainstage.pipeline.derivatives import ScanFiles
from brainstage.pipeline.files import sha256_of_file, sha256_of_json, write_json
from brainstage.pipeline.kept import read_record

MARKER_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step from state to state, and how its result is kept.

    Attributes
    ----------
    name : str
        Unique in a chain; the marker's file name.
    version : str
        Changed by hand whenever the code changes what it computes.
    parameters : mapping
        Everything that changes the result, weights' hashes included; plain JSON values.
    reads : tuple of str
        Stages whose outputs go in, besides the state.
    run : callable
        State to state; pure.
    save : callable
        State to the files that hold it; each is written in one rename.
    load : callable
        The state before this stage to the state after it, from the files.
    """

    name: str
    version: str
    parameters: Mapping[str, Any]
    reads: tuple[str, ...]
    run: Callable[[Any], Any]
    save: Callable[[Any, ScanFiles], Sequence[Path]]
    load: Callable[[Any, ScanFiles], Any]


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """An output as it was when its marker was written.

    Attributes
    ----------
    path : str
        Relative to the output directory.
    size : int
        Bytes.
    mtime_ns : int
        Modification time; as long as it and the size agree, the hash is not computed again.
    sha256 : str
    """

    path: str
    size: int
    mtime_ns: int
    sha256: str

    def __post_init__(self) -> None:
        if self.path.startswith("/") or ".." in self.path.split("/"):
            raise ValueError(f"{self.path!r} does not lie in the output directory")


@dataclass(frozen=True, kw_only=True)
class Marker:
    """What ``.brainstage/<scan>/<stage>.json`` holds."""

    stage: str
    key: str
    version: str
    parameters: Mapping[str, Any]
    inputs: Mapping[str, str]
    outputs: tuple[StoredFile, ...]
    tool_versions: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    attempt: int = 1

    @property
    def sha256_by_path(self) -> dict[str, str]:
        """Relative path of each output to its hash: what a later stage reads."""
        return {stored.path: stored.sha256 for stored in self.outputs}


def content_key(stage: Stage, inputs: Mapping[str, str]) -> str:
    """Return the hash of a stage's input bytes, parameters and code version.

    Parameters
    ----------
    stage : Stage
    inputs : mapping
        Name or relative path of each input to its sha256.
    """
    return sha256_of_json(
        {
            "stage": stage.name,
            "version": stage.version,
            "parameters": dict(stage.parameters),
            "inputs": dict(inputs),
        }
    )


def marker_path(files: ScanFiles, stage_name: str) -> Path:
    """Return where the marker of a stage stands."""
    return files.state / f"{stage_name}.json"


def describe_outputs(paths: Sequence[Path], files: ScanFiles) -> tuple[StoredFile, ...]:
    """Measure freshly written outputs."""
    return tuple(_stored(path, files) for path in paths)


def write_marker(files: ScanFiles, marker: Marker) -> None:
    """Write a marker; the last thing a stage does."""
    content = {
        "format": MARKER_FORMAT,
        "stage": marker.stage,
        "key": marker.key,
        "version": marker.version,
        "parameters": dict(marker.parameters),
        "inputs": dict(marker.inputs),
        "outputs": [vars(stored) for stored in marker.outputs],
        "tool_versions": dict(marker.tool_versions),
        "seconds": round(marker.seconds, 3),
        "attempt": marker.attempt,
    }
    write_json(marker_path(files, marker.stage), content)


def read_marker(files: ScanFiles, stage_name: str) -> Marker | None:
    """Read a marker; None when there is none, or one that cannot be understood, which counts as none."""
    return read_record(marker_path(files, stage_name), Marker, {"format": MARKER_FORMAT})


def outputs_intact(marker: Marker, files: ScanFiles) -> bool:
    """Tell whether every output is still what the marker says.

    The hash is computed only where the modification time differs, as after a copy of the directory.
    """
    for stored in marker.outputs:
        path = os.path.join(files.out_dir, stored.path)  # noqa: PTH118 - a fourth of the time of a Path, per output
        try:
            status = os.stat(path)  # noqa: PTH116
            if status.st_size != stored.size:
                return False
            if status.st_mtime_ns != stored.mtime_ns and sha256_of_file(Path(path)) != stored.sha256:
                return False
        except (OSError, ValueError):  # gone, no file any more, or a name that no file can have
            return False
    return True


def source_sha256(files: ScanFiles, stage_name: str) -> str | None:
    """Return the hash of the file that the outputs of a stage were made from.

    None where that cannot be told: the stage has no marker, or one that it builds on has been run anew since.
    """
    found: dict[str, Marker] = {}
    wanted: list[tuple[str, str | None]] = [(stage_name, None)]
    while wanted:
        name, key = wanted.pop()
        marker = found.get(name) or read_marker(files, name)
        if marker is None or key not in (None, marker.key):
            return None
        if name not in found:
            found[name] = marker
            wanted += [
                (read.removeprefix("stage "), digest)
                for read, digest in marker.inputs.items()
                if read.startswith("stage ")
            ]
    return next((marker.inputs["source"] for marker in found.values() if "source" in marker.inputs), None)


def _stored(path: Path, files: ScanFiles) -> StoredFile:
    status = path.stat()
    return StoredFile(
        path=files.relative(path),
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        sha256=sha256_of_file(path),
    )
