r"""How right the volumes of hippocampi, ventricles and tissues are, how they bear disturbances, and what they cost.

Run it alone on the machine::

    .venv/bin/python benchmarks/volumes.py DATA_DIR --work-dir DIR [--parts crops labelled ...] [--workers 2]

``DATA_DIR`` holds ``hippocampus_crops`` (Task04 of the Medical Segmentation Decathlon) and BIDS directories:
``oasis_labelled`` (stripped, labelled by hand, with people scanned twice), ``elderly`` and ``adults_2mm`` (whole heads
with an automatic segmentation in the same labels), ``ds000011`` and ``ds002748_2mm`` (no labels). ``DIR`` keeps what
the default chain makes of every head, disturbed ones included, and what Atropos finds: the first run takes an hour,
others are quick. An output directory of ``brainstage run`` over a dataset is taken as it is when it lies there under
the dataset's name.

Parts: ``crops`` (held out from training), ``labelled`` (against labels, and scans of one person against each other),
``losses`` (known losses of hippocampal volume), ``robustness`` (the same heads under noise, other voxels, contrast,
stripping and poses, through the whole chain), ``outlines`` (wrong outlines, are they withheld), ``tissues`` (beside
Atropos), ``seconds``. ``calibration`` makes the cases of ``outlines`` on other scans, among them crops of the
training, from which the bounds of an outline's quality are set; it is only run when it is named.

Only the rows of the parts that run are replaced in ``benchmarks/volumes.csv``, and, for the outlines, in
``volumes_outlines.csv`` and ``volumes_calibration.csv``. ``benchmarks/volumes.md`` is made from them, with withheld
outlines by the bounds in use; without any part (``--parts none``) it is made anew.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import multiprocessing
import statistics
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import nibabel as nib
import numpy as np
from hippocampal_loss import KINDS, Lost, Structure, with_loss
from labelled_heads import (
    OUTWARDS,
    SIDES,
    Labels,
    Mask,
    Scan,
    Specimen,
    dice,
    hippocampi_in,
    labels_of,
    registered,
    scans_in,
    specimen_of,
    ventricles_in,
)
from numpy.typing import NDArray
from volumes_table import read_rows, table_of

from brainstage.pipeline.engine import limit_threads
from brainstage.pipeline.entities import BidsEntities
from brainstage.pipeline.records import VOLUMES, RegisteredBrain, T1wScan
from brainstage.pipeline.volume import BrainMask, Grid, Volume

if TYPE_CHECKING:
    from brainstage.preprocessing.hippocampi import Hippocampus

FOLDER: Final = Path(__file__).parent
TABLE: Final = FOLDER / "volumes.csv"
OUTLINES: Final = FOLDER / "volumes_outlines.csv"
CALIBRATION: Final = FOLDER / "volumes_calibration.csv"
TRAINING: Final = FOLDER.parent / "training" / "hippocampus.py"
CROPS: Final = "hippocampus_crops"
MANUAL: Final = "oasis_labelled"
LABELLED: Final = (MANUAL, "elderly", "adults_2mm")
WHOLE: Final = "ds000011"
STRIPPED: Final = "ds002748_2mm"
STRENGTHS: Final = (0.05, 0.10, 0.20, 0.30)
ONE_ALONE: Final = "thinner"
"""The kind of loss that one hippocampus also has alone: the other must not seem to lose."""
DISTURBED: Final = ((MANUAL, 2), (WHOLE, 1), ("elderly", 1), ("adults_2mm", 1))
"""Datasets and how many of their first scans are disturbed and go through the whole chain."""
CALIBRATED: Final = (("adults_2mm", 1), (WHOLE, 1), (STRIPPED, 4))
"""Datasets and how many of their scans make one that bounds are set by."""
CALIBRATED_CROPS: Final = 8
"""Every so many of the crops of the training."""
JUDGED: Final = (MANUAL, "elderly")
SHIFT_MM: Final = 20.0
TIMES: Final = 3

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where the scans are, and where what was made of them is kept."""

    data_dir: Path
    work_dir: Path

    def brain(self, scan: Scan) -> RegisteredBrain:
        """Return a scan after the default chain."""
        return registered(scan.scan, self.work_dir / scan.dataset)


@cache
def segmenter() -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Return the network in the package."""
    from brainstage.models.hippocampus_network import hippocampus_segmenter

    return hippocampus_segmenter()


def row_of(
    part: str,
    name: str,
    measure: str,
    value: float | None,
    *,
    case: str = "",
    strength: float | str = "",
    side: str = "",
) -> Row:
    """Return a row of the table; `name` is dataset and scan."""
    dataset, _, scan = name.partition("/")
    return {
        "part": part,
        "dataset": dataset,
        "scan": scan,
        "case": case,
        "strength": strength,
        "side": side,
        "measure": measure,
        "value": "" if value is None else float(f"{value:.6g}"),
    }


# --- crops


def training() -> Any:  # noqa: ANN401 - a script
    """Import the script that trains the network, for what it held out."""
    spec = importlib.util.spec_from_file_location(TRAINING.stem, TRAINING)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{TRAINING.name} is no script")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(TRAINING.parent))
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def read_crop(folder: Path, name: str) -> tuple[NDArray[np.float32], Mask]:
    """Return a hand-drawn crop and its hippocampus."""
    image = np.asarray(nib.load(folder / "images" / name).dataobj, dtype=np.float32)
    return image, np.asarray(nib.load(folder / "labels" / name).dataobj) > 0


def crop_names(places: Places) -> tuple[list[str], list[str]]:
    """Return the names of the crops that trained the network, and of those held out."""
    names = sorted(path.name for path in (places.data_dir / CROPS / "images").glob("*.nii.gz"))
    held_out = training().held_out(names)
    return [name for name in names if name not in held_out], held_out


def crop_rows(names: Sequence[str], places: Places) -> list[Row]:
    """Return overlap and volumes of crops: the network on the crop in the middle of its box."""
    rows = []
    for name in names:
        image, truth = read_crop(places.data_dir / CROPS, name)
        probability = training().found_in_crop(image, segmenter())
        measures = {
            "dice": dice(probability > 0.5, truth),
            "true_ml": float(truth.sum()) / 1000.0,
            "found_ml": float(probability.sum()) / 1000.0,
        }
        rows += [row_of("crops", f"{CROPS}/{name}", measure, value) for measure, value in measures.items()]
    return rows


def crop_specimen(name: str, places: Places) -> Specimen:
    """Return a crop as a head that ends at its edges, its middle where the template has a hippocampus."""
    from brainstage.preprocessing.hippocampi import CENTRES_MM

    image, truth = read_crop(places.data_dir / CROPS, name)
    to_template = np.eye(4)
    to_template[:3, 3] = np.array(CENTRES_MM["left"]) - (np.array(image.shape) - 1) / 2.0
    head = Volume(data=image, voxel_to_ras=np.eye(4))
    return Specimen(
        dataset=CROPS,
        scan=name,
        head=head,
        brain_mask=None,
        native_to_template=to_template,
        grid=head.grid,
        truth={"left": truth},
        fluid=float(np.percentile(image, 4.0)),
        white=float(np.percentile(image, 95.0)),
    )


# --- labels


def volumes_ml(brain: RegisteredBrain) -> tuple[dict[str, float | None], Volume]:
    """Return what the stage publishes of a brain, and its label map."""
    from brainstage.preprocessing.volumes import measure_volumes

    measured, labels = measure_volumes(brain, segmenter())
    return {name: measured.volumes_ml.get(name) for name in VOLUMES}, labels


def labelled_rows(scan: Scan, places: Places) -> list[Row]:
    """Return volumes and overlaps of a scan with labels, beside those of its labels."""
    from outline_failures import found_in

    from brainstage.preprocessing.volumes import LABEL_OF

    brain = places.brain(scan)
    head = brain.normalised.corrected.head
    labels = labels_of(scan, head.grid)
    row = partial(row_of, "labelled", scan.name)
    ml = head.grid.voxel_volume_mm3 / 1000.0
    volumes, published = volumes_ml(brain)
    rows = [row(f"{name}_ml", value) for name, value in volumes.items()]
    rows.append(row("intracranial_true_ml", float((labels > 0).sum()) * ml))
    found = found_in(specimen_of(scan, brain, {}), segmenter())
    for side, truth in hippocampi_in(labels).items():
        one = found[side]
        rows += [
            row("true_ml", float(truth.sum()) * ml, case="hippocampus", side=side),
            row("found_ml", one.volume_ml if one else None, case="hippocampus", side=side),
            row("dice", dice(one.inside(head.grid), truth) if one else 0.0, case="hippocampus", side=side),
            row("withheld", float(volumes[f"hippocampus_{side}"] is None), case="hippocampus", side=side),
        ]
    for side, truth in ventricles_in(labels).items():
        rows += [
            row("true_ml", float(truth.sum()) * ml, case="ventricle", side=side),
            row("found_ml", volumes[f"ventricle_{side}"], case="ventricle", side=side),
        ]
        inside = np.rint(published.data) == LABEL_OF[f"ventricle_{side}"]
        rows.append(row("dice", dice(inside, truth), case="ventricle", side=side))
    return rows


# --- known losses


def loss_rows(scan: Scan, position: int, places: Places) -> list[Row]:
    """Return what is found of known losses in both hippocampi, and in one alone: by turns the left and the right."""
    from outline_failures import found_in

    brain = places.brain(scan)
    head = brain.normalised.corrected.head
    labels = labels_of(scan, head.grid)
    specimen = specimen_of(scan, brain, hippocampi_in(labels))
    fluid = _fluid_of(head, labels)
    structures = {side: Structure(head, inside) for side, inside in specimen.truth.items()}
    before = found_in(specimen, segmenter())
    rows, alone = [], SIDES[position % 2]
    for kind in KINDS:
        for strength in STRENGTHS:
            lost = {
                side: with_loss(one, head, strength, kind, outwards=OUTWARDS[side], fluid=fluid)
                for side, one in structures.items()
            }
            affected = {"both": SIDES} | ({"one": (alone,)} if kind == ONE_ALONE else {})
            for which, sides in affected.items():
                changed = head.data + sum(lost[side].head.data - head.data for side in sides)
                after = found_in(specimen.with_data(changed), segmenter())
                for side, one in before.items():
                    other = after[side]
                    change = 100.0 * (1.0 - other.volume_ml / one.volume_ml) if one and other else None
                    row = partial(
                        row_of, "losses", scan.name, case=f"{kind}, {which}", strength=strength, side=side
                    )
                    if side not in sides:
                        rows.append(row("spared_loss", change))
                        continue
                    rows += [row("true_loss", 100.0 * lost[side].loss), row("found_loss", change)]
                    if kind == "fluid" and one and other:
                        rows.append(row("outline_loss", _of_outline(one, lost[side], structures[side], head)))
    return rows


def _of_outline(found: Hippocampus, lost: Lost, structure: Structure, head: Volume) -> float:
    """Return how much of the undisturbed outline itself became fluid, per cent."""
    inside = found.inside(head.grid)[structure.box]
    return 100.0 * float(lost.filled[inside].sum()) / float(inside.sum())


def _fluid_of(head: Volume, labels: Labels) -> float:
    """Return the intensity of fluid in the ventricles."""
    from scipy import ndimage

    ventricles = np.any(list(ventricles_in(labels).values()), axis=0)
    core = ndimage.binary_erosion(ventricles)
    return float(np.median(head.data[core if core.sum() > 20 else ventricles]))


# --- disturbances through the whole chain


@dataclass(frozen=True, kw_only=True)
class Change:
    """A harmless change of a scan; `fits` says of which heads it makes sense."""

    name: str
    strength: float | str
    make: Callable[[Specimen, np.random.Generator], Volume]
    fits: Callable[[Specimen, bool], bool] = lambda *_: True


def _noise(specimen: Specimen, rng: np.random.Generator, *, percent: float) -> Volume:
    from outline_failures import noisy

    return noisy(specimen, percent, rng).head


def _power(specimen: Specimen, rng: np.random.Generator, *, power: float) -> Volume:
    from outline_failures import bent

    return bent(specimen, power, rng).head


def _spacing(specimen: Specimen, _: np.random.Generator, *, spacing_mm: float) -> Volume:
    from brainstage.preprocessing.resampling import resampled

    return resampled(specimen.head, specimen.head.grid.rescaled(spacing_mm))


def _slices(specimen: Specimen, _: np.random.Generator, *, axis: int, thickness_mm: float) -> Volume:
    """Average whole voxels along an axis into slices."""
    head = specimen.head
    count = max(2, round(thickness_mm / head.spacing_mm[axis]))
    length = head.shape[axis] // count * count
    data = np.moveaxis(head.data, axis, 0)[:length]
    thick = np.moveaxis(data.reshape(length // count, count, *data.shape[1:]).mean(axis=1), 0, axis)
    steps = np.eye(4)
    steps[axis, axis], steps[axis, 3] = count, (count - 1) / 2.0
    return Volume(data=thick, voxel_to_ras=head.voxel_to_ras @ steps)


def _stripped(specimen: Specimen, _: np.random.Generator, *, margin_mm: float) -> Volume:
    from scipy import ndimage

    if specimen.brain_mask is None:
        raise ValueError(f"{specimen.scan} has no mask to be stripped by")
    away = ndimage.distance_transform_edt(~specimen.brain_mask.data, sampling=specimen.head.spacing_mm)
    return specimen.head.with_data(np.where(away <= margin_mm, specimen.head.data, 0.0))


def _turned(specimen: Specimen, _: np.random.Generator, *, axis: int, degrees: float) -> Volume:
    """Turn the head about the middle of the brain and sample it anew, by cubic splines, on the grid that it had."""
    from scipy import ndimage
    from scipy.spatial.transform import Rotation

    head = specimen.head
    spacing = np.array(head.spacing_mm)
    turn = Rotation.from_rotvec(degrees * np.eye(3)[axis], degrees=True).as_matrix()
    matrix = np.diag(1.0 / spacing) @ turn @ np.diag(spacing)
    assert specimen.brain_mask is not None  # noqa: S101 - for the type checker
    centre = np.argwhere(specimen.brain_mask.data).mean(axis=0)
    data = ndimage.affine_transform(head.data, matrix, centre - matrix @ centre, order=3)
    return head.with_data(np.clip(data, 0.0, head.data.max()))


def _shifted(specimen: Specimen, _: np.random.Generator) -> Volume:
    matrix = specimen.head.voxel_to_ras.copy()
    matrix[:3, 3] += SHIFT_MM
    return Volume(data=specimen.head.data, voxel_to_ras=matrix)


def _reordered(specimen: Specimen, _: np.random.Generator) -> Volume:
    """Store the same head as another scanner does: axes reversed and exchanged, the header with them."""
    image = nib.Nifti1Image(specimen.head.data, specimen.head.voxel_to_ras)
    other = nib.orientations.io_orientation(image.affine)
    wanted = nib.orientations.axcodes2ornt(("P", "S", "L"))
    stored = image.as_reoriented(nib.orientations.ornt_transform(other, wanted))
    return Volume(data=np.asarray(stored.dataobj, dtype=np.float32), voxel_to_ras=stored.affine)


def _finer(spacing_mm: float) -> Callable[[Specimen, bool], bool]:
    return lambda specimen, _: max(specimen.head.spacing_mm) < spacing_mm - 0.1


def _about_1mm(specimen: Specimen, _: bool) -> bool:
    return max(specimen.head.spacing_mm) < 1.5


CHANGES: Final = (
    *(Change(name="noise, %", strength=n, make=partial(_noise, percent=n)) for n in (3.0, 6.0, 9.0)),
    Change(name="voxels, mm", strength=0.7, make=partial(_spacing, spacing_mm=0.7), fits=_about_1mm),
    *(
        Change(name="voxels, mm", strength=n, make=partial(_spacing, spacing_mm=n), fits=_finer(n))
        for n in (1.5, 2.0)
    ),
    *(
        Change(
            name=f"slices of 3 mm, {view}",
            strength=3.0,
            make=partial(_slices, axis=axis, thickness_mm=3.0),
            fits=_about_1mm,
        )
        for axis, view in enumerate(("sagittal", "coronal", "axial"))
    ),
    *(
        Change(name="contrast, power", strength=n, make=partial(_power, power=n))
        for n in (0.7, 0.85, 1.2, 1.4)
    ),
    *(
        Change(
            name="stripped, margin mm",
            strength=n,
            make=partial(_stripped, margin_mm=n),
            fits=lambda _, stripped: not stripped,
        )
        for n in (0.0, 3.0)
    ),
    *(
        Change(name=f"turned 18° about {axis}", strength=18.0, make=partial(_turned, axis=n, degrees=18.0))
        for n, axis in enumerate("xyz")
    ),
    Change(name="shifted, mm", strength=SHIFT_MM, make=_shifted),
    Change(name="stored as PSL", strength="", make=_reordered),
)


def robustness_rows(scan: Scan, places: Places) -> list[Row]:
    """Return the volumes of a scan as it is and after every change that fits it."""
    brain = places.brain(scan)
    stripped = brain.normalised.corrected.stripped
    specimen = replace(specimen_of(scan, brain, {}), head=stripped.head)  # as it came from the scanner
    row = partial(row_of, "robustness", scan.name)
    rows = [row(f"{name}_ml", value, case="as it is") for name, value in volumes_ml(brain)[0].items()]
    for number, change in enumerate(CHANGES):
        if not change.fits(specimen, stripped.skull_stripped_input):
            continue
        rng = np.random.default_rng((zlib.crc32(scan.name.encode()), number))
        changed = _through_the_chain(
            change.make(specimen, rng), f"{scan.dataset}{scan.scan.key}", number, places
        )
        rows += [
            row(f"{name}_ml", value, case=change.name, strength=change.strength)
            for name, value in volumes_ml(changed)[0].items()
        ]
    return rows


def _through_the_chain(head: Volume, name: str, number: int, places: Places) -> RegisteredBrain:
    from brainstage.pipeline.nifti import write_volume

    subject = "".join(filter(str.isalnum, name))
    entities = BidsEntities(subject=subject, acquisition=f"{number:02d}")
    path = places.work_dir / "changed" / f"{entities.key}_T1w.nii.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(path, head)  # the same bytes each time: the chain sees that nothing is new
    scan = T1wScan(entities=entities, path=path, t1w_path=path.name)
    return registered(scan, places.work_dir / "changed_out")


# --- outlines


def outlines_of_scan(scan: Scan, position: int, places: Places) -> list[Row]:
    """Return the outlines of a head, undisturbed and disturbed."""
    from outline_failures import outline_rows

    brain = places.brain(scan)
    grid = brain.normalised.corrected.head.grid
    truth = hippocampi_in(labels_of(scan, grid)) if scan.labels else {}
    return outline_rows(specimen_of(scan, brain, truth), segmenter(), position, seed=1)


def outlines_of_crop(name: str, position: int, places: Places) -> list[Row]:
    """Return the outlines of a crop, undisturbed and disturbed."""
    from outline_failures import outline_rows

    return outline_rows(crop_specimen(name, places), segmenter(), position, seed=2)


# --- tissues beside Atropos


CLASSES: Final = ("grey matter", "white matter", "fluid")
_CLASS_OF: Final[Mapping[str, int]] = {"GM": 1, "WM": 2, "CSF": 3}


def grouped_labels(labels: Labels, names: Path) -> Labels:
    """Return manual labels as grey matter (1), white matter (2) and fluid (3); 0 where they say nothing.

    Parameters
    ----------
    labels : ndarray
    names : Path
        ``label_information.csv``, whose last column says which tissue a label is.
    """
    table = np.zeros(int(labels.max()) + 1, dtype=np.int16)
    with names.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            label = int(row["Label Number"])
            if label < len(table):
                table[label] = _CLASS_OF.get(row["Class"], 0)
    grouped: Labels = table[labels]
    return grouped


def tissue_rows(scan: Scan, places: Places) -> list[Row]:
    """Return overlap with the grouped labels and seconds, ours and those of Atropos without and with priors."""
    from brainstage.preprocessing.tissues import segment_tissues

    brain = places.brain(scan)
    corrected = brain.normalised.corrected
    names = places.data_dir / scan.dataset / "derivatives" / "labels" / "label_information.csv"
    truth = grouped_labels(labels_of(scan, corrected.head.grid), names)
    segment_tissues(corrected.head, corrected.brain_mask, brain.native_to_template)  # templates are read once
    started = time.perf_counter()
    ours = segment_tissues(corrected.head, corrected.brain_mask, brain.native_to_template)
    seconds = time.perf_counter() - started
    found = {"ours": (np.zeros_like(truth) if ours is None else ours.labels, seconds)}
    for name, priors in (("Atropos, k-means", False), ("Atropos, priors", True)):
        kept = places.work_dir / "atropos" / f"{scan.scan.key}_{'priors' if priors else 'kmeans'}.npz"
        found[name] = _atropos(brain, kept, priors=priors)
    rows = []
    for name, (labels, its_seconds) in found.items():
        row = partial(row_of, "tissues", scan.name, case=name)
        rows.append(row("seconds", its_seconds))
        for value, tissue in enumerate(CLASSES, start=1):
            rows.append(row("dice", dice(labels == value, truth == value), side=tissue))
            inside = truth > 0
            rows.append(row("dice_labelled", dice((labels == value) & inside, truth == value), side=tissue))
    return rows


def _atropos(brain: RegisteredBrain, kept: Path, *, priors: bool) -> tuple[Labels, float]:
    """Return Atropos' tissues in our numbers, and its seconds, or what an earlier run kept of them."""
    if kept.is_file():
        with np.load(kept) as held:
            return held["labels"], float(held["seconds"])
    import ants

    from brainstage.preprocessing.ants_tools import to_ants

    corrected = brain.normalised.corrected
    mask = corrected.brain_mask
    inside = corrected.head.with_data(np.where(mask.data, corrected.head.data, 0.0))
    options: dict[str, Any] = {"i": "kmeans[3]"}
    if priors:
        options = {"i": [to_ants(one) for one in _priors(brain)], "priorweight": 0.25}
    image, its_mask = to_ants(inside), to_ants(inside.with_data(mask.data))
    started = time.perf_counter()
    found = ants.atropos(a=image, x=its_mask, m="[0.2,1x1x1]", c="[5,0]", **options)
    seconds = time.perf_counter() - started
    # Its classes go from dark to bright.
    labels = np.array([0, 3, 1, 2], dtype=np.int16)[found["segmentation"].numpy().astype(int)]
    kept.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(kept, labels=labels, seconds=seconds)
    return labels, seconds


def _priors(brain: RegisteredBrain) -> list[Volume]:
    """Return the template's fluid, grey and white matter in native space."""
    from brainstage.preprocessing.resampling import interpolated
    from brainstage.preprocessing.template import load_template

    template = load_template(1.0)
    corrected = brain.normalised.corrected
    grey, white = (
        interpolated(tissue, template.grid.voxel_to_ras, corrected.head.grid, brain.native_to_template)
        for tissue in (template.grey_matter, template.white_matter)
    )
    fluid = np.where(corrected.brain_mask.data, np.clip(1.0 - grey - white, 0.0, 1.0), 0.0)
    return [corrected.head.with_data(one) for one in (fluid, grey, white)]


# --- seconds


def second_rows(scan: Scan, places: Places) -> list[Row]:
    """Return the seconds of a head of 1 mm: everything, and each part; medians of a few times, loaded already."""
    from brainstage.preprocessing.hippocampi import find_hippocampi
    from brainstage.preprocessing.tissues import segment_tissues
    from brainstage.preprocessing.ventricles import lateral_ventricles
    from brainstage.preprocessing.volumes import measure_volumes

    brain = _at_1mm(places.brain(scan))
    corrected = brain.normalised.corrected
    head, mask, to_template = corrected.head, corrected.brain_mask, brain.native_to_template
    segment = segmenter()
    work: dict[str, Callable[[], object]] = {
        "everything": lambda: measure_volumes(brain, segment),
        "hippocampi": lambda: find_hippocampi(head, to_template, segment),
        "tissues": lambda: segment_tissues(head, mask, to_template),
        "ventricles": lambda: lateral_ventricles(head, mask, to_template),
    }
    rows = []
    for name, do in work.items():
        do()
        taken = []
        for _ in range(TIMES):
            started = time.perf_counter()
            do()
            taken.append(time.perf_counter() - started)
        rows.append(row_of("seconds", scan.name, "seconds", statistics.median(taken), case=name))
    return rows


def _at_1mm(brain: RegisteredBrain) -> RegisteredBrain:
    """Return a brain in voxels of 1 mm."""
    from brainstage.preprocessing.resampling import resampled, resampled_mask

    corrected = brain.normalised.corrected
    grid: Grid = corrected.head.grid.rescaled(1.0)

    def finer(head: Volume, mask: BrainMask) -> dict[str, Any]:
        return {"head": resampled(head, grid), "brain_mask": resampled_mask(mask, grid)}

    stripped = replace(corrected.stripped, **finer(corrected.stripped.head, corrected.stripped.brain_mask))
    fine = replace(corrected, stripped=stripped, **finer(corrected.head, corrected.brain_mask))
    normalised = replace(
        brain.normalised,
        corrected=fine,
        brain=resampled(brain.normalised.brain, grid),
        brain_mask=fine.brain_mask,
    )
    return replace(brain, normalised=normalised)


# --- all of them


def tasks_of(part: str, places: Places) -> list[Callable[[], list[Row]]]:
    """Return what a part consists of: independent tasks, each of which gives rows."""
    scans = partial(scans_in, places.data_dir)
    if part == "crops":
        return [partial(crop_rows, crop_names(places)[1], places)]
    if part == "labelled":
        return [partial(labelled_rows, s, places) for dataset in LABELLED for s in scans(dataset)]
    if part == "losses":
        once = [s for dataset in LABELLED for s in scans(dataset) if not _is_retest(s, places)]
        return [partial(loss_rows, s, position, places) for position, s in enumerate(once)]
    if part == "robustness":
        return [
            partial(robustness_rows, s, places) for dataset, most in DISTURBED for s in scans(dataset)[:most]
        ]
    if part == "outlines":
        judged = [s for dataset in JUDGED for s in scans(dataset)]
        return [partial(outlines_of_scan, s, position, places) for position, s in enumerate(judged)]
    if part == "calibration":
        others = [s for dataset, every in CALIBRATED for s in scans(dataset)[::every]]
        crops = crop_names(places)[0][::CALIBRATED_CROPS]
        return [
            *(partial(outlines_of_scan, s, position, places) for position, s in enumerate(others)),
            *(partial(outlines_of_crop, name, position, places) for position, name in enumerate(crops)),
        ]
    if part == "tissues":
        return [partial(tissue_rows, s, places) for s in scans(MANUAL)]
    return [partial(second_rows, s, places) for s in (*scans(MANUAL)[:2], *scans(WHOLE)[:2])]


def _is_retest(scan: Scan, places: Places) -> bool:
    from accuracy import people_of

    people = people_of(places.data_dir / MANUAL) if scan.dataset == MANUAL else {}
    subject = scan.scan.entities.subject
    return people.get(subject, subject) != subject


PARTS: Final = ("crops", "labelled", "losses", "robustness", "outlines", "tissues", "seconds")
TIMED: Final = ("tissues", "seconds")
"""One after the other, with two threads."""
FILES: Final[Mapping[str, Path]] = {"outlines": OUTLINES, "calibration": CALIBRATION}
"""Of parts with rows of their own kind."""


def run_part(part: str, places: Places, workers: int) -> None:
    """Run a part and put its rows in place of those that an earlier run wrote."""
    timed = part in TIMED
    limit_threads(2 if timed else 1, asked_for=True)
    tasks = tasks_of(part, places)
    began = time.perf_counter()
    rows: list[Row] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1 if timed else workers, mp_context=context) as pool:
        for number, found in enumerate(pool.map(_done, tasks), start=1):
            rows += found
            print(f"{part}: {number} of {len(tasks)}, {time.perf_counter() - began:.0f} s", flush=True)
    path = FILES.get(part, TABLE)
    others = [row for row in read_rows(path) if row["part"] != part] if path is TABLE else []
    write_rows([*others, *rows], path)


def _done(task: Callable[[], list[Row]]) -> list[Row]:
    return task()


def write_rows(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write rows, with every column that any of them has."""
    rows = list(rows)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data_dir", type=Path, metavar="DATA_DIR")
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=[*PARTS, "calibration", "none"], default=PARTS)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    places = Places(data_dir=options.data_dir, work_dir=options.work_dir)
    for part in options.parts:
        if part != "none":
            run_part(part, places, options.workers)
    table = table_of(read_rows(TABLE), read_rows(OUTLINES), read_rows(CALIBRATION))
    print(table)
    (FOLDER / "volumes.md").write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main()
