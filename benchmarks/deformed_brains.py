"""Brains of a finished run with known atrophy, by either of two deformations, and what the program measures of them.

``flow`` is the program's own (:mod:`brainstage.workflows.synthetic.atrophy`): regions of the template swell and shrink
along one long-ranged flow. ``other`` has the same amounts and shares nothing else with it: the person's own hippocampi
move towards their centre lines (``hippocampal_loss.py``), and the walls of the person's own lateral ventricles move
outwards, where nothing moves farther than some millimetres away. A predictor that knew one deformation only would be
found out by the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from hippocampal_loss import Structure, with_loss
from labelled_heads import OUTWARDS
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from brainstage.models.hippocampus_network import hippocampus_segmenter
from brainstage.models.norms import NORMED_MEASURES
from brainstage.pipeline.derivatives import ScanFiles
from brainstage.pipeline.files import read_json
from brainstage.pipeline.nifti import read_mask, read_volume
from brainstage.pipeline.records import (
    CorrectedBrain,
    HeaderFindings,
    Normalisation,
    NormalisedBrain,
    RegisteredBrain,
    StrippedBrain,
)
from brainstage.pipeline.volume import Affine, BrainMask, Grid, Volume, inverse_of
from brainstage.preprocessing.hippocampi import find_hippocampi
from brainstage.preprocessing.ventricles import lateral_ventricles
from brainstage.preprocessing.volumes import measure_volumes
from brainstage.workflows.synthetic.anatomy import load_anatomy
from brainstage.workflows.synthetic.atrophy import atrophied, atrophy_model, atrophy_velocity, draw_effect
from brainstage.workflows.synthetic.diffeomorphism import VectorField, exponential, interpolate, volume_ratio

MEASURES: Final = tuple(NORMED_MEASURES.values())
"""What is measured of each brain, in this order."""
WALL_SIGMA_MM: Final = 4.0
"""How far around the ventricles' walls tissue is pushed away."""
SPARED_MM: Final = 8.0
"""From a hippocampus to where walls move freely: what a hippocampus loses is decided elsewhere."""
REACH_SIGMAS: Final = 5.0
"""From the walls to where nothing moves, and the field ends."""
NODE_MM: Final = 2.0
GROWTH_TOLERANCE: Final = 0.002
SOLVER_LIMIT: Final = 40
TURN_SD_DEGREES: Final = 0.5
SHIFT_SD_MM: Final = 0.5
"""Everybody is turned and shifted a little, ill or not: every brain is interpolated."""
MOVED_MM: Final = 6.0
"""No part of a brain is turned and shifted farther."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Brain:
    """A brain in template space, and how it came there.

    Attributes
    ----------
    key : str
        The scan's name.
    image : Volume
        Normalised, 0 outside the mask.
    mask : BrainMask
    native_to_template : ndarray, (4, 4)
    normalisation : Normalisation
    """

    key: str
    image: Volume
    mask: BrainMask
    native_to_template: Affine
    normalisation: Normalisation

    @property
    def head(self) -> Volume:
        """In the intensities of the scan, 0 outside the mask: darker than fluid, as stripped scans come."""
        data = self.image.data * self.normalisation.scale + self.normalisation.centre
        return self.image.with_data(np.where(self.mask.data, data, 0.0))

    def with_head(self, head: Volume, mask: BrainMask) -> Brain:
        """Return the brain with another head in the intensities of the scan."""
        data = (head.data - self.normalisation.centre) / self.normalisation.scale
        return replace(self, image=head.with_data(np.where(mask.data, data, 0.0)), mask=mask)

    def registered(self) -> RegisteredBrain:
        """Return the brain as if it had been scanned as it is now, voxel by voxel of the template's grid.

        The voxels get their places in native space, so that volumes are those of the person, not of the template.
        """
        to_ras = inverse_of(self.native_to_template) @ self.image.voxel_to_ras
        head = Volume(data=self.head.data, voxel_to_ras=to_ras)
        mask = BrainMask(data=self.mask.data, voxel_to_ras=to_ras)
        findings = HeaderFindings(
            shape=head.shape, spacing_mm=head.spacing_mm, axcodes=head.axcodes, affine_source="sform"
        )
        stripped = StrippedBrain(
            head=head, findings=findings, brain_mask=mask, method="none", skull_stripped_input=True
        )
        normalised = NormalisedBrain(
            brain=Volume(data=self.image.data, voxel_to_ras=to_ras),
            brain_mask=mask,
            normalisation=self.normalisation,
            corrected=CorrectedBrain(head=head, brain_mask=mask, stripped=stripped, field_range=1.0),
        )
        return RegisteredBrain(
            brain=self.image,
            brain_mask=self.mask,
            native_to_template=self.native_to_template,
            normalised=normalised,
        )


Deform = Callable[[Brain, float, int], Brain]
"""A brain, the level and the person's seed: to the deformed brain; a person's draws are those of every level."""


def read_brain(files: ScanFiles) -> Brain:
    """Return the brain of a finished scan, whose registration was affine."""
    name = files.template_t1w.name.removesuffix(".nii.gz")
    about = read_json(files.template_t1w.with_name(f"{name}.json"))
    return Brain(
        key=files.key,
        image=read_volume(files.template_t1w),
        mask=read_mask(files.template_mask),
        native_to_template=np.array(about["NativeToTemplate_ras_mm"]),
        normalisation=Normalisation(**about["IntensityNormalisation"]),
    )


def measures_of(brain: Brain) -> NDArray[np.float64]:
    """Return what the program's stage of volumes measures of a brain, (M,) as :data:`MEASURES`; NaN is withheld."""
    found = measure_volumes(brain.registered(), hippocampus_segmenter())[0].measures
    values = (found[name] for name in MEASURES)
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def measures_in_words(values: NDArray[np.float64]) -> dict[str, float]:
    """Return measures by their names; one that is withheld is absent.

    Parameters
    ----------
    values : ndarray, (M,)
        As of :func:`measures_of`.
    """
    return {name: float(v) for name, v in zip(MEASURES, values, strict=True) if not np.isnan(v)}


def flow() -> Deform:
    """Return the program's own deformation; takes seconds."""
    model = atrophy_model(load_anatomy())

    def deform(brain: Brain, level: float, seed: int) -> Brain:
        velocity = atrophy_velocity(model, draw_effect(level, seed), seed)
        image, mask = atrophied(brain.image, brain.mask, velocity)
        return replace(brain, image=image, mask=mask)

    return deform


def other() -> Deform:
    """Return the other deformation: hippocampi become thinner, and the walls of ventricles move outwards."""
    return _contracted_and_widened


GENERATORS: Final[Mapping[str, Callable[[], Deform]]] = {"flow": flow, "other": other}


def _contracted_and_widened(brain: Brain, level: float, seed: int) -> Brain:
    effect = draw_effect(level, seed)
    hippocampi, ventricles = labels_of_brain(brain)
    losses = {"left": 1.0 - effect.left_hippocampus, "right": 1.0 - effect.right_hippocampus}
    head, spared = brain.head, np.logical_or(*hippocampi.values())
    wider = widening(ventricles, spared, head.voxel_to_ras, effect.ventricles)
    return brain.with_head(*_moved(head, brain.mask, wider, narrowing(hippocampi, losses, head.grid), seed))


def labels_of_brain(brain: Brain) -> tuple[dict[str, NDArray[np.bool_]], NDArray[np.bool_]]:
    """Return the hippocampi by side and the lateral ventricles as the program's own stage outlines them.

    Returns
    -------
    hippocampi : dict of str to ndarray, (I, J, K) bool
    ventricles : ndarray, (I, J, K) bool

    Raises
    ------
    ValueError
        Where one of them is not found.
    """
    corrected, affine = brain.registered().normalised.corrected, brain.native_to_template
    found = find_hippocampi(corrected.head, affine, hippocampus_segmenter())
    ventricles = lateral_ventricles(corrected.head, corrected.brain_mask, affine)
    grid = corrected.head.grid
    hippocampi = {side: one.inside(grid) for side, one in found.items() if one is not None}
    if len(hippocampi) < len(found) or ventricles is None:
        raise ValueError(
            f"{brain.key}: hippocampi or ventricles are not found; leave the scan out of the run"
        )
    return hippocampi, ventricles.on(grid) > 0


def narrowing(
    hippocampi: Mapping[str, NDArray[np.bool_]], losses: Mapping[str, float], grid: Grid
) -> NDArray[np.float64]:
    """Return from how far each voxel comes when hippocampi have become thinner, by ``hippocampal_loss.py``.

    That deforms an image; here it is given the voxels' own indices. So the brain is interpolated once with all that
    moves it, and the ill are not more blurred than the healthy.

    Parameters
    ----------
    hippocampi : mapping
        Side to ndarray, (I, J, K) bool.
    losses : mapping
        Side to the share of its volume that is lost.
    grid : Grid

    Returns
    -------
    ndarray, (3, I, J, K) float64
        Voxels.
    """
    moved = np.zeros((3, *grid.shape))
    for axis, indices in enumerate(np.indices(grid.shape, dtype=np.float32)):
        places = Volume(data=indices, voxel_to_ras=grid.voxel_to_ras)
        for side, inside in hippocampi.items():
            structure = Structure(places, inside)
            lost = with_loss(structure, places, losses[side], "thinner", outwards=OUTWARDS[side], fluid=0.0)
            moved[axis] += lost.head.data - indices
    return moved


def widening(
    ventricles: NDArray[np.bool_], spared: NDArray[np.bool_], voxel_to_ras: Affine, growth: float
) -> VectorField:
    """Return where each place comes from when the ventricles' walls have moved outwards.

    The velocity is the slope of the blurred ventricles: it stands upright on their walls and is gone some millimetres
    away, so that tissue next to them is pressed together, and none far from them moves.

    Parameters
    ----------
    ventricles : ndarray, (I, J, K) bool
    spared : ndarray, (I, J, K) bool
        Nothing moves in it.
    voxel_to_ras : ndarray, (4, 4)
        Of an upright grid of cubic voxels.
    growth : float
        Factor of the ventricles' volume.

    Returns
    -------
    VectorField
        Displacement, mm, along RAS+.
    """
    spacing = float(voxel_to_ras[0, 0])
    if not np.allclose(voxel_to_ras[:3, :3], spacing * np.eye(3)):
        raise ValueError("the grid must be upright, with cubic voxels")
    step = max(1, round(NODE_MM / spacing))
    box = _around(ventricles, REACH_SIGMAS * WALL_SIGMA_MM / spacing)
    blurred = ndimage.gaussian_filter(ventricles[box].astype(np.float64), WALL_SIGMA_MM / spacing)
    away_mm = ndimage.distance_transform_edt(~spared[box], sampling=spacing)
    nodes = (slice(None, None, step),) * 3
    slope = np.stack(np.gradient(blurred[nodes], step * spacing))
    free = np.clip(away_mm[nodes] / SPARED_MM, 0.0, 1.0)
    x, y, z = (float(o + spacing * s.start) for o, s in zip(voxel_to_ras[:3, 3], box, strict=True))
    unit = VectorField(
        vectors_mm=-(WALL_SIGMA_MM**2) * free * slope, origin_mm=(x, y, z), spacing_mm=step * spacing
    )
    points = voxel_to_ras[:3, :3] @ np.argwhere(ventricles).T + voxel_to_ras[:3, 3:]
    return exponential(unit.with_vectors(-_rate(unit, points, growth) * unit.vectors_mm))


def _rate(unit: VectorField, points: NDArray[np.float64], growth: float) -> float:
    wanted = float(np.log(growth))
    rate = wanted
    for _ in range(SOLVER_LIMIT):
        found = float(np.log(volume_ratio(unit.with_vectors(rate * unit.vectors_mm), points)))
        if abs(wanted - found) < GROWTH_TOLERANCE:
            return rate
        rate *= wanted / found
    raise ValueError(f"no flow makes ventricles {growth:.2f} times as large")


def _around(region: NDArray[np.bool_], margin: float) -> tuple[slice, slice, slice]:
    where = np.argwhere(region)
    low = np.maximum(where.min(axis=0) - int(np.ceil(margin)), 0)
    high = np.minimum(where.max(axis=0) + 1 + int(np.ceil(margin)), region.shape)
    i, j, k = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return i, j, k


def _moved(
    head: Volume, mask: BrainMask, wider: VectorField, narrower: NDArray[np.float64], seed: int
) -> tuple[Volume, BrainMask]:
    """Return a head that was deformed, turned and shifted, by one interpolation with cubic splines."""
    rng = np.random.default_rng([seed, *b"repositioned"])
    turn = Rotation.from_rotvec(rng.normal(0.0, TURN_SD_DEGREES, 3), degrees=True).as_matrix()
    shift = rng.normal(0.0, SHIFT_SD_MM, (3, 1))
    box = _around(mask.data, MOVED_MM / min(head.spacing_mm))
    i, j, k = (s.stop - s.start for s in box)
    indices = np.indices((i, j, k)).reshape(3, -1) + np.array([[s.start] for s in box])
    places = head.voxel_to_ras[:3, :3] @ indices + head.voxel_to_ras[:3, 3:]
    middle = places.mean(axis=1, keepdims=True)
    places = turn @ (places - middle) + middle + shift
    places = places + wider.at(places)
    sources = np.linalg.solve(head.voxel_to_ras[:3, :3], places - head.voxel_to_ras[:3, 3:])
    sources = sources + np.stack([interpolate(of_axis, sources) for of_axis in narrower])
    kept = interpolate(mask.data.astype(np.float32), sources) >= 0.5
    inside = np.zeros(head.shape, dtype=np.bool_)
    inside[box] = kept.reshape(i, j, k)
    data = np.zeros(head.shape, dtype=np.float32)
    splined = ndimage.map_coordinates(head.data, sources[:, kept], order=3, mode="nearest", output=np.float32)
    data[inside] = np.maximum(splined, 0.0)
    return head.with_data(data), BrainMask(data=inside, voxel_to_ras=mask.voxel_to_ras)
