"""``norms.json``: what is usual by age and sex in a healthy cohort, and whose scans it may be asked about."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from brainstage.models.norms import ReferenceClass
from brainstage.pipeline.config import differences
from brainstage.pipeline.errors import InputMissingError, ModelError, OutputError
from brainstage.pipeline.files import read_regular, sha256_of_bytes

NORMS_FILE: Final = "norms.json"
Sex = Literal["F", "M", "unknown"]
_NO_PART_OF_ID: Final = {"norms_id": True, "versions": True}
_MAX_DIFFERENCES_SHOWN: Final = 5
_NO_PART_OF_VOLUMES: Final = (
    ("network_grid",),
    ("stage_versions", "network_grid"),
    ("registration", "resolution_mm"),
)
"""Settings of what follows the volumes, and of the grid in template space: volumes are measured in native space."""


class NormsDescription(BaseModel):
    """``norms.json``.

    Attributes
    ----------
    norms_id : str
        ``n`` and a short hash of all that changes a percentile.
    dataset : str
        Name of the cohort.
    label_column : str or None
        Where the labels stand; None where everybody was taken.
    labels : tuple of str
        Whose scans were taken.
    people : int
    sexes : mapping
        How many of them are female, male, or neither is known.
    reference : ReferenceClass
        Its `measured_by` is the version of the volumes.
    preprocessing_id : str
    preprocessing_content : mapping
    versions : mapping
        Package to version.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    schema_version: Literal[1] = 1
    norms_id: str = ""
    dataset: str = ""
    label_column: str | None = None
    labels: tuple[str, ...] = ()
    people: int = Field(ge=1)
    sexes: dict[Sex, int]
    reference: ReferenceClass
    preprocessing_id: str
    preprocessing_content: dict[str, Any]
    versions: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _of_one_piece(self) -> NormsDescription:
        measures = [norm.measure for norm in self.reference.norms]
        if not measures or len(set(measures)) < len(measures):
            raise ValueError("there must be one norm for each measure")
        if any(norm.ages is None for norm in self.reference.norms):
            raise ValueError("every norm must be by age")
        if sum(self.sexes.values()) != self.people:
            raise ValueError(f"sexes are of {sum(self.sexes.values())} people, and there are {self.people}")
        return self

    @property
    def own_id(self) -> str:
        """The `norms_id` that the content gives."""
        content = self.model_dump(mode="json", exclude=dict(_NO_PART_OF_ID))
        return f"n{sha256_of_bytes(json.dumps(content, sort_keys=True).encode())[:11]}"

    def measured_alike(self, content: Mapping[str, Any]) -> bool:
        """Tell whether scans preprocessed in some way have volumes that these norms are about.

        Parameters
        ----------
        content : mapping
            Everything in a preprocessing that changes a voxel.
        """
        return not self.differences(content)

    def differences(self, content: Mapping[str, Any]) -> list[tuple[str, str, str]]:
        """Return what differs in how volumes come about: the setting, the value there, and that of these norms."""
        return differences(_of_volumes(content), _of_volumes(self.preprocessing_content))


def read_norms(path: Path) -> NormsDescription:
    """Read and check ``norms.json`` of a norms directory.

    That content and `norms_id` agree finds accidents; it is no signature.

    Raises
    ------
    InputMissingError
        There is no such directory.
    ModelError
        The file is absent, not JSON, not what this version writes, or was altered.
    """
    if not path.is_dir():
        raise InputMissingError(f"norms directory {path.name} does not exist; make one with brainstage norms")
    try:
        norms = NormsDescription.model_validate_json(read_regular(path / NORMS_FILE))
    except OSError as error:
        raise ModelError(
            f"{path.name} is no norms directory: {NORMS_FILE} cannot be read ({error.strerror})"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ModelError(f"{path.name}/{NORMS_FILE} is not usable: {where}: {first['msg']}") from error
    if norms.norms_id != norms.own_id:
        raise ModelError(
            f"{path.name}/{NORMS_FILE} was altered: its content gives another norms_id; copy or make the norms again"
        )
    return norms


def require_measured_alike(norms: NormsDescription, measured_by: str, content: Mapping[str, Any]) -> None:
    """Raise unless norms are about volumes that are measured as here.

    Another mask or another bias field gives other volumes, and a percentile would hold the difference: norms are
    refused for it as models are.

    Parameters
    ----------
    norms : NormsDescription
    measured_by : str
        Version of the volumes here.
    content : mapping
        Everything in the preprocessing here that changes a voxel.

    Raises
    ------
    ModelError
        With the values that differ, and the way out.
    """
    if norms.reference.measured_by != measured_by:
        raise ModelError(
            f"the norms are of volumes of version {norms.reference.measured_by}, and this brainstage measures version "
            f"{measured_by}: run the healthy cohort again and make them anew with brainstage norms"
        )
    differing = norms.differences(content)
    if differing:
        shown = "; ".join(
            f"{key} is {here} here and {there} in the norms"
            for key, here, there in differing[:_MAX_DIFFERENCES_SHOWN]
        )
        more = len(differing) - _MAX_DIFFERENCES_SHOWN
        raise ModelError(
            f"the norms are of scans preprocessed otherwise: {shown}{f'; and {more} more' if more > 0 else ''}. Run "
            "with the options of the norms, or run the healthy cohort with those here and make the norms anew with "
            "brainstage norms"
        )


def require_replaceable_norms(norms_dir: Path) -> None:
    """Raise unless a directory is absent, empty, or holds norms that may be replaced.

    Raises
    ------
    OutputError
        When it is a file, or holds anything else.
    """
    if not norms_dir.exists():
        return
    if not norms_dir.is_dir():
        raise OutputError(f"{norms_dir.name} is a file: choose a directory for the norms")
    if not any(norms_dir.iterdir()):
        return
    try:
        read_norms(norms_dir)
    except ModelError as error:
        raise OutputError(
            f"{norms_dir.name} is not empty and not a norms directory, so it is not replaced: choose another one"
        ) from error


def _of_volumes(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a preprocessing that volumes depend on."""
    return {
        key: {name: inner for name, inner in value.items() if (key, name) not in _NO_PART_OF_VOLUMES}
        if isinstance(value, Mapping)
        else value
        for key, value in content.items()
        if (key,) not in _NO_PART_OF_VOLUMES
    }
