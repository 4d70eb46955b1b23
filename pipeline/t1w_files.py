"""Where the T1w files of a BIDS directory lie, and what lies there that looks like one and is none.

No participant's folder is passed over in silence: one without a file that can be used says why.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from brainstage.pipeline.errors import InputMissingError

SUFFIX: Final = "T1w"
EXTENSIONS: Final = (".nii", ".nii.gz")
_OTHER_IMAGES: Final = (
    ".mgz", ".mgh", ".img", ".hdr", ".dcm", ".nrrd", ".mha", ".mnc", ".nii.bz2", ".nii.xz", ".nii.zst", ".zip"
)  # fmt: skip
_LIKE_T1W: Final = re.compile(r"t1w|unit1|mprage|(?:^|_)t1(?:_|\.|$)", re.IGNORECASE)
_LIKE_PARTICIPANT: Final = re.compile(r"sub[-_ ]?[0-9a-z]*[0-9][0-9a-z]*", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class T1wFiles:
    """What was found.

    Attributes
    ----------
    participants : tuple of str
        Names of the folders, ``sub-01``.
    files : tuple of Path
        ``sub-*/[ses-*/]anat/*_T1w.nii[.gz]``, whatever their names say before that.
    not_recognised : tuple of (str, str)
        Path relative to the dataset, and why it is no T1w file.
    why_none : tuple of str
        For each of `participants`, why there is no file of it; empty where there is one.
    """

    participants: tuple[str, ...]
    files: tuple[Path, ...]
    not_recognised: tuple[tuple[str, str], ...]
    why_none: tuple[str, ...]


def find_t1w_files(root: Path) -> T1wFiles:
    """Look through the participants' folders of a dataset.

    Raises
    ------
    InputMissingError
        When the dataset's own folder may not be read.
    """
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError as error:
        raise InputMissingError(
            f"BIDS directory {root.name or root} cannot be read: {error.strerror}"
        ) from error
    names: list[str] = []
    files: list[Path] = []
    near: list[tuple[str, str]] = []
    why_none: list[str] = []
    for entry in entries:
        if not entry.name.startswith("sub-"):
            if _LIKE_PARTICIPANT.fullmatch(entry.name) and entry.is_dir():
                near.append((f"{entry.name}/", "a participant's folder begins with sub-"))
            continue
        folder = Path(entry.path)
        if not _is_folder(folder):
            if entry.is_symlink():
                names.append(entry.name)
                why_none.append("its folder is a link that leads nowhere")
            continue
        found, beside, why = _look_through(folder)
        names.append(entry.name)
        files += found
        near += [(path.relative_to(root).as_posix(), reason) for path, reason in beside]
        why_none.append("" if found else why)
    return T1wFiles(
        participants=tuple(names), files=tuple(files), not_recognised=tuple(near), why_none=tuple(why_none)
    )


def _look_through(participant: Path) -> tuple[list[Path], list[tuple[Path, str]], str]:
    """Return the T1w files of a participant, what else looks like one, and why there is none."""
    closed: list[Path] = []
    top = _names_in(participant, closed)
    sessions = [participant / name for name in top if name.startswith("ses-")]
    places = [participant, *(folder for folder in sessions if _is_folder(folder))]
    with_anat = [place for place in places if _is_folder(place / "anat")]
    files: list[Path] = []
    near: list[tuple[Path, str]] = []
    for folder in (*places, *(place / "anat" for place in with_anat)):
        in_anat = folder not in places
        for name in top if folder == participant else _names_in(folder, closed):
            if name.startswith("."):
                continue
            if in_anat and name.endswith(tuple(f"_{SUFFIX}{extension}" for extension in EXTENSIONS)):
                files.append(folder / name)
            elif (reason := _why_not(name, in_anat=in_anat)) is not None:
                near.append((folder / name, reason))
    near += [(folder, "the folder may not be read") for folder in closed]
    if near:
        path, reason = near[0]
        why = reason if path == participant else f"{path.relative_to(participant).as_posix()}: {reason}"
    elif with_anat:
        why = f"no file in anat/ ends with _{SUFFIX}{f' or _{SUFFIX}'.join(EXTENSIONS)}"
    else:
        others = [name for name in top if not name.startswith(("ses-", "."))]
        why = f"there is no anat/, only {', '.join(others[:4])}" if others else "there is no anat/"
    return files, near, why


def _why_not(name: str, *, in_anat: bool) -> str | None:
    """Return why a file that looks like a T1w image is none; None for all that does not look like one."""
    lower = name.lower()
    extension = next((end for end in (*EXTENSIONS[::-1], *_OTHER_IMAGES) if lower.endswith(end)), None)
    if extension is None or not _LIKE_T1W.search(name.split(".")[0]):
        return None
    stem = name[: len(name) - len(extension)]
    suffix = stem.rpartition("_")[2]
    if extension not in EXTENSIONS:
        return f"{extension} is not NIfTI; convert it to .nii.gz"
    if not name.endswith(extension):
        return f"the extension {name[len(stem) :]} is not in lower case"
    if suffix.lower() == "unit1":
        return "UNIT1, the uniform image of MP2RAGE, is not taken as a T1w scan"
    if suffix != SUFFIX:
        if suffix.lower() == SUFFIX.lower():
            return f"the suffix is written {suffix}, not {SUFFIX}"
        behind = re.search(r"_t1w_(.+)$", stem, re.IGNORECASE)
        return f"{behind[1]} stands behind {SUFFIX}" if behind else f"the suffix is {suffix}, not {SUFFIX}"
    return None if in_anat else "it does not lie in anat/"


def _names_in(folder: Path, closed: list[Path]) -> list[str]:
    """Return the names in a folder, sorted; one that may not be read has none, and is added to `closed`."""
    try:
        return sorted(entry.name for entry in os.scandir(folder))
    except OSError:
        closed.append(folder)
        return []


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # the folder around it may not be read
        return False
