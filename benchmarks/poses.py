"""Whether any pose loses a scan: real heads turned, shifted, with a long neck, or stored in another order.

Run it alone on the machine::

    .venv/bin/python benchmarks/poses.py SCAN_OR_BIDS_DIR... [--scans N] [--threads 2] [--every]

Each scan goes through the default chain as it is, then once in each pose. A pose moves the head by a known affine:
given by the header, which leaves the voxels alone, or by the voxels, resampled onto an upright lattice that holds
the whole field of view, so that the network sees the tilted head. Signs and directions take turns from scan to
scan; ``--every`` tries all of them on each. It prints two tables and writes them to ``benchmarks/poses.md``.

A posed scan counts as registered when its way to the template, composed with the pose, leads the brain's voxels
to within 5 mm, on average, of where the scan's own registration leads them, and its brain mask has a Dice of at
least 0.93 with the scan's own mask carried into the pose.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from brainstage.pipeline.bids import read_dataset
from brainstage.pipeline.config import Config
from brainstage.pipeline.engine import limit_threads
from brainstage.pipeline.errors import BrainstageError
from brainstage.pipeline.volume import Affine, Grid, Volume, inverse_of

if TYPE_CHECKING:
    from brainstage.pipeline.records import RegisteredBrain

WITHIN_MM: Final = 5.0
LEAST_DICE: Final = 0.93
TURN_DEG: Final = 45.0
SHIFT_MM: Final = 80.0
NECK_MM: Final = 120.0
"""Below the field of view of a head: down to the collar bones."""
SHOULDERS_BELOW_MM: Final = 70.0
STORAGE_ORDERS: Final = ("LAS", "LPI", "RSP", "AIL", "PIR", "SRA")
THICK_MM: Final = 3.0
SEED: Final = 0
INTRODUCTION: Final = (
    "The default chain on {scans} scans, {threads} thread(s), networks and template loaded. A posed scan is "
    f"registered when the brain's voxels come to lie within {WITHIN_MM:g} mm, on average, of where the scan as it is "
    f"brings them, and its mask has a Dice of at least {LEAST_DICE:g} with the mask of the scan as it is. Made by "
    "`benchmarks/poses.py`."
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Pose:
    """One way to present a head.

    Attributes
    ----------
    kind : str
        The row of the table.
    name : str
    motion : ndarray, (4, 4)
        RAS+ mm of the scan as it is to RAS+ mm of the posed one.
    by_voxels : bool
        Whether the voxels are resampled; the header alone is turned otherwise.
    neck : bool
    storage : str
        Axis codes of the file.
    """

    kind: str
    name: str
    motion: Affine
    by_voxels: bool = False
    neck: bool = False
    storage: str = "RAS"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one posed scan.

    Attributes
    ----------
    dice : float
        With the scan's own mask.
    apart_mm : float
        Mean distance from the scan's own registration over the brain.
    seconds : float
        From the file to the template.
    error : str
        Empty when the chain came through.
    """

    scan: str
    group: str
    kind: str
    pose: str
    dice: float
    apart_mm: float
    seconds: float
    error: str = ""

    @property
    def registered(self) -> bool:
        """Tell whether the pose did no harm."""
        return not self.error and self.apart_mm < WITHIN_MM and self.dice >= LEAST_DICE


def poses_of(number: int, *, every: bool) -> Iterator[Pose]:
    """Yield the poses of the scan of that number, or all of them."""
    turns = [(axis, sign) for axis in "xyz" for sign in (1.0, -1.0)]
    for place, (axis, sign) in enumerate(turns):
        motion = _turned(axis, sign * TURN_DEG)
        name = f"{axis} {sign * TURN_DEG:+.0f}"
        yield Pose(kind="turned by 45°, voxels", name=name, motion=motion, by_voxels=True)
        if every or place % 2 == (number + place // 2) % 2:
            yield Pose(kind="turned by 45°, header", name=name, motion=motion)
    generator = np.random.default_rng(SEED + number)
    yield Pose(
        kind="mixed turns, voxels", name="30/30/30", motion=_turned("xyz", (30, 30, 30)), by_voxels=True
    )
    axis_of_turn = generator.normal(size=3)
    random_turn = axis_of_turn / np.linalg.norm(axis_of_turn) * np.radians(generator.uniform(20, TURN_DEG))
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_rotvec(random_turn).as_matrix()
    motion[:3, 3] = generator.uniform(-40, 40, 3)
    yield Pose(
        kind="mixed turns, voxels", name=f"random {SEED + number}, shifted", motion=motion, by_voxels=True
    )
    for place, (axis, sign) in enumerate(turns):
        motion = np.eye(4)
        motion["xyz".index(axis), 3] = sign * SHIFT_MM
        name = f"{axis} {sign * SHIFT_MM:+.0f} mm"
        if every or place == number % 6:
            yield Pose(kind="shifted by 80 mm, header", name=name, motion=motion)
        if every or place in {(number + 1) % 6, (number + 4) % 6}:
            yield Pose(kind="shifted by 80 mm, voxels", name=name, motion=motion, by_voxels=True)
    yield Pose(kind="long neck", name="neck and shoulders", motion=np.eye(4), neck=True)
    for place, storage in enumerate(STORAGE_ORDERS):
        if every or place in {number % 6, (number + 3) % 6}:
            yield Pose(kind="other storage order", name=storage, motion=np.eye(4), storage=storage)


def about_its_middle(pose: Pose, head: Volume) -> Pose:
    """Return the pose with its turn about the middle of the head's field of view."""
    middle_mm = (head.voxel_to_ras @ np.append((np.array(head.shape) - 1) / 2.0, 1.0))[:3]
    motion = pose.motion.copy()
    motion[:3, 3] += middle_mm - motion[:3, :3] @ middle_mm
    return replace(pose, motion=motion)


def posed(head: Volume, pose: Pose) -> Volume:
    """Return the head as the pose has it; its place in RAS mm is moved by ``pose.motion``."""
    from brainstage.preprocessing.resampling import resampled

    if pose.neck:
        head = with_neck(head)
    if pose.by_voxels:
        return resampled(head, _lattice(head, pose.motion), inverse_of(pose.motion))
    return Volume(data=head.data, voxel_to_ras=pose.motion @ head.voxel_to_ras)


def with_neck(head: Volume) -> Volume:
    """Return the head with a neck below its field of view: its lowest slices carried on, then shoulders."""
    slices = round(NECK_MM / head.spacing_mm[2])
    soft_tissue = float(np.percentile(head.data[head.data > head.data.mean()], 40))
    lowest = ndimage.gaussian_filter(head.data[:, :, :3].mean(axis=2), 2.0)
    flesh = np.where(lowest > 0.3 * soft_tissue, soft_tissue, lowest)
    width, depth = head.shape[:2]
    across, along = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, depth), indexing="ij")
    shoulders = np.where((np.abs(along) < 0.7) & (np.abs(across) < 0.95), soft_tissue, 0.0)
    below = round(SHOULDERS_BELOW_MM / head.spacing_mm[2])
    # The lowest slice comes first.
    stack = [shoulders if number >= below else flesh for number in range(slices, 0, -1)]
    neck = ndimage.gaussian_filter(np.stack(stack, axis=2), 1.5)
    noise = np.random.default_rng(SEED).normal(0, 0.08 * soft_tissue, neck.shape)
    data = np.concatenate([np.maximum(neck + noise, 0.0), head.data], axis=2).astype(np.float32)
    matrix = head.voxel_to_ras.copy()
    matrix[:3, 3] = (head.voxel_to_ras @ [0, 0, -slices, 1])[:3]
    return Volume(data=data, voxel_to_ras=matrix)


def write_scan(path: Path, volume: Volume, storage: str) -> None:
    """Write a volume as NIfTI with its axes in another order."""
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(storage))
    data = nib.orientations.apply_orientation(volume.data, turn)
    image = nib.Nifti1Image(data, volume.voxel_to_ras @ inv_ornt_aff(turn, volume.shape))
    image.set_qform(image.affine, code=1)
    image.set_sform(image.affine, code=1)
    nib.save(image, path)


def run_chain(path: Path, config: Config) -> tuple[RegisteredBrain, float]:
    """Bring a scan to the template; return it and the seconds that took."""
    from brainstage.preprocessing.bias_field import correct_bias
    from brainstage.preprocessing.brain_extraction import extract_brain
    from brainstage.preprocessing.ingest import ingest
    from brainstage.preprocessing.intensity import normalise
    from brainstage.preprocessing.registration import register

    started = time.perf_counter()
    stripped = extract_brain(ingest(path, config.ingest), config.brain_extraction)
    normalised = normalise(correct_bias(stripped, config.bias_field), config.intensity)
    registered = register(normalised, config.registration)
    return registered, time.perf_counter() - started


def compared(reference: RegisteredBrain, found: RegisteredBrain, motion: Affine) -> tuple[float, float]:
    """Return the Dice of the masks and the mean distance in mm between the registrations."""
    from brainstage.preprocessing.registration import dice
    from brainstage.preprocessing.resampling import resampled_mask

    mask = reference.normalised.brain_mask
    own = found.normalised.brain_mask
    expected = resampled_mask(mask, own.grid, inverse_of(motion))
    index = np.argwhere(mask.data)[::50]
    points: NDArray[np.float64] = np.c_[index, np.ones(len(index))] @ mask.voxel_to_ras.T
    there = points @ reference.native_to_template.T
    here = points @ (found.native_to_template @ motion).T
    apart_mm = float(np.linalg.norm((there - here)[:, :3], axis=1).mean())
    return dice(expected.data, own.data), apart_mm


def outcomes_of(name: str, path: Path, number: int, config: Config, *, every: bool) -> Iterator[Outcome]:
    """Yield what becomes of one scan in each of its poses, the scan as it is first."""
    from brainstage.preprocessing.ingest import ingest

    try:
        head = ingest(path, config.ingest).head
        reference, seconds = run_chain(path, config)
    except BrainstageError as error:
        missed = {"dice": 0.0, "apart_mm": float("inf"), "seconds": float("nan")}
        yield Outcome(scan=name, group="refused", kind="as it is", pose="", error=error.message, **missed)
        return
    group = _group_of(reference)
    yield Outcome(scan=name, group=group, kind="as it is", pose="", dice=1.0, apart_mm=0.0, seconds=seconds)
    with tempfile.TemporaryDirectory(prefix="brainstage-poses-") as folder:
        file = Path(folder) / "posed.nii"
        for plan in poses_of(number, every=every):
            pose = about_its_middle(plan, head)
            if pose.neck and group.startswith("stripped"):
                continue
            write_scan(file, posed(head, pose), pose.storage)
            try:
                found, seconds = run_chain(file, config)
            except BrainstageError as error:
                missed = {"dice": 0.0, "apart_mm": float("inf"), "seconds": float("nan")}
                yield Outcome(
                    scan=name, group=group, kind=pose.kind, pose=pose.name, error=error.message, **missed
                )
                continue
            overlap, apart_mm = compared(reference, found, pose.motion)
            yield Outcome(
                scan=name,
                group=group,
                kind=pose.kind,
                pose=pose.name,
                dice=overlap,
                apart_mm=apart_mm,
                seconds=seconds,
            )


def table_of(outcomes: Sequence[Outcome], threads: int) -> str:
    """Return the result as Markdown."""
    lines = [
        "# Poses",
        "",
        INTRODUCTION.format(scans=len({o.scan for o in outcomes}), threads=threads),
        "",
        "| scans | pose | tried | registered | Dice, median | worst | mm apart, median | worst | seconds, median |",
        "|---" * 9 + "|",
    ]
    for group in dict.fromkeys(o.group for o in outcomes):
        for kind in dict.fromkeys(o.kind for o in outcomes if o.group == group):
            rows = [o for o in outcomes if o.group == group and o.kind == kind]
            dices, apart = [o.dice for o in rows], [o.apart_mm for o in rows]
            good = sum(o.registered for o in rows)
            cells = [group, kind, str(len(rows)), f"{good}" if good == len(rows) else f"**{good}**"]
            cells += [f"{np.median(dices):.3f}", f"{min(dices):.3f}"]
            cells += [f"{np.median(apart):.1f}", f"{max(apart):.1f}"]
            cells.append(f"{np.nanmedian([o.seconds for o in rows]):.1f}")
            lines.append("| " + " | ".join(cells) + " |")
    lost = [o for o in outcomes if not o.registered]
    tried = [o for o in outcomes if o.kind != "as it is"]
    lines += ["", f"{len(tried) - len(lost)} of {len(tried)} posed scans are registered."]
    if lost:
        lines += [
            "",
            "| lost | scans | pose | Dice | mm apart | error |",
            "|---" * 6 + "|",
            *(
                f"| {o.scan} | {o.group} | {o.kind}: {o.pose} | {o.dice:.3f} | {o.apart_mm:.1f} | {o.error} |"
                for o in lost
            ),
        ]
    return "\n".join([*lines, ""])


def scans_under(paths: Sequence[Path], at_most: int | None) -> list[tuple[str, Path]]:
    """Return name and path of every scan: files as they are, `at_most` of each BIDS directory."""
    found: list[tuple[str, Path]] = []
    for path in paths:
        if path.is_dir():
            scans = read_dataset(path).scans[:at_most]
            found += [(f"{path.name}/{scan.key}", scan.path) for scan in scans]
        else:
            found.append((path.name.removesuffix(".gz").removesuffix(".nii"), path))
    return found


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("paths", type=Path, nargs="+", help="T1w files and BIDS directories")
    parser.add_argument("--scans", type=int, help="of each BIDS directory, at most")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--every", action="store_true", help="every sign and direction on every scan")
    options = parser.parse_args()
    limit_threads(options.threads, asked_for=True)
    config = Config()
    scans = scans_under(options.paths, options.scans)
    run_chain(scans[0][1], config)  # loads networks, template and libraries
    outcomes = []
    for number, (name, path) in enumerate(scans):
        for outcome in outcomes_of(name, path, number, config, every=options.every):
            outcomes.append(outcome)
            print(
                f"{'' if outcome.registered else 'LOST '}{name}: {outcome.kind} {outcome.pose}: "
                f"Dice {outcome.dice:.3f}, {outcome.apart_mm:.1f} mm, {outcome.seconds:.1f} s {outcome.error}",
                flush=True,
            )
        # After each scan: what an interrupted run has found is kept.
        table = table_of(outcomes, options.threads)
        (Path(__file__).parent / "poses.md").write_text(table, encoding="utf-8")
    print(table_of(outcomes, options.threads))


def _turned(axes: str, degrees: float | tuple[float, float, float]) -> Affine:
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_euler(axes, degrees, degrees=True).as_matrix()
    return motion


def _lattice(head: Volume, motion: Affine) -> Grid:
    """Return an upright cubic lattice, centred on the scanner's, that holds the moved field of view."""
    spacing_mm = max(1.0, float(np.cbrt(head.grid.voxel_volume_mm3)))
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in head.shape], [1], indexing="ij")).reshape(4, -1)
    before = head.voxel_to_ras @ corners
    after = motion @ before
    middle = (before.min(axis=1) + before.max(axis=1))[:3] / 2.0
    reach = np.abs(after[:3] - middle[:, None]).max(axis=1)
    i, j, k = (int(n) for n in np.ceil(2.0 * reach / spacing_mm) + 1)
    matrix = np.diag([spacing_mm] * 3 + [1.0])
    matrix[:3, 3] = middle - spacing_mm * (np.array([i, j, k]) - 1) / 2.0
    return Grid(shape=(i, j, k), voxel_to_ras=matrix)


def _group_of(reference: RegisteredBrain) -> str:
    stripped = reference.normalised.corrected.stripped
    if stripped.skull_stripped_input:
        return "stripped"
    return "heads in thick slices" if max(stripped.findings.spacing_mm) > THICK_MM else "whole heads"


if __name__ == "__main__":
    main()
