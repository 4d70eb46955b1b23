"""The only importer of ANTs: conversion from and to our volumes, seeds, and the calls the stages need.

ANTs and ITK work in LPS+ mm; everything that leaves this file is in RAS+ mm. Thread counts are read by ITK when
it is first imported (see :func:`brainstage.pipeline.engine.limit_threads`), so the import happens inside.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from brainstage.pipeline.errors import RegistrationError
from brainstage.pipeline.records import Deformation
from brainstage.pipeline.scratch import scratch_folder
from brainstage.pipeline.volume import Affine, BrainMask, DisplacementField, Volume, inverse_of

RAS_LPS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Its own inverse."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Resolutions of a linear registration, coarse to fine.

    Attributes
    ----------
    iterations, shrink, smoothing : tuple of int
        For each resolution: iterations at most, subsampling factor, and Gaussian sigma in voxels.
    sampling : float
        Share of the voxels that the metric is taken from.
    """

    iterations: tuple[int, ...]
    shrink: tuple[int, ...]
    smoothing: tuple[int, ...]
    sampling: float


BRAIN_SCHEDULE: Final = Schedule(
    iterations=(500, 100, 100), shrink=(4, 2, 1), smoothing=(2, 1, 1), sampling=0.1
)
"""For stripped brains at 2 mm. The last level is what brings the overlap of labels to that of
antsRegistrationSyNQuick[a] at 1 mm: 0.001 to 0.002 are lost without it, and more samples do not make up for it. It
has to settle: cut off after 20 iterations, brains ended up to 0.3 mm beside the same brain whose intensities differed
by a millionth; with 100, 0.08 mm."""
HEAD_SCHEDULE: Final = Schedule(iterations=(100, 50), shrink=(2, 1), smoothing=(1, 0), sampling=0.5)
"""For whole heads at 4 mm: coarser levels see the scalp and not the brain, and the affine grows up to it."""
SYN_ITERATIONS: Final = (100, 70, 20)
"""At 8, 4 and 2 mm. The last are the dear ones, and cannot be spared: half of them lose 0.008 of label overlap."""
SYN_STEP: Final = 0.3
"""Voxels that an iteration moves at most; ANTs' usual 0.2 comes less far in as many iterations."""
METRIC_BINS: Final = 32


def ants_version() -> str:
    """Return the version of ANTs, after making sure that it can be loaded."""
    import ants

    return str(ants.__version__)


def to_ants(volume: Volume) -> Any:  # noqa: ANN401 - antspyx has no types
    """Return an ANTsImage of the same voxels and place, float32."""
    import ants

    lps = RAS_LPS @ volume.voxel_to_ras
    spacing = np.array(volume.spacing_mm)
    return ants.from_numpy(
        np.ascontiguousarray(volume.data),
        origin=lps[:3, 3].tolist(),
        spacing=spacing.tolist(),
        direction=lps[:3, :3] / spacing,
    )


def n4_field(head: Volume, brain_mask: BrainMask, seed: int) -> NDArray[np.float32]:
    """Return the bias field as ANTs' N4 estimates it at its defaults, (I, J, K) float32."""
    import ants

    with seeded(seed):
        field = ants.n4_bias_field_correction(
            to_ants(head), mask=_ants_mask(brain_mask), return_bias_field=True
        )
    return np.asarray(field.numpy(), dtype=np.float32)


def affine_registration(
    fixed: Volume,
    moving: Volume,
    start: Affine,
    *,
    seed: int,
    kind: str = "Affine",
    schedule: Schedule = BRAIN_SCHEDULE,
    fixed_mask: BrainMask | None = None,
) -> Affine:
    """Register two volumes with an affine transform and the Mattes metric.

    Parameters
    ----------
    fixed, moving : Volume
    start : ndarray, (4, 4)
        Moving RAS+ mm to fixed RAS+ mm, where the search begins.
    seed : int
    kind : str
        ``Affine`` or ``Rigid``, in the words of antspyx.
    schedule : Schedule
    fixed_mask : BrainMask, optional
        Where the metric is evaluated.

    Returns
    -------
    ndarray, (4, 4) float64
        Moving RAS+ mm to fixed RAS+ mm.

    Raises
    ------
    RegistrationError
        When ANTs gives up.
    """
    import ants

    with scratch_folder() as folder, seeded(seed):
        initial = folder / "start.mat"
        ants.write_transform(_itk_affine(inverse_of(start)), str(initial))
        try:
            result = ants.registration(
                fixed=to_ants(fixed),
                moving=to_ants(moving),
                type_of_transform=kind,
                initial_transform=[str(initial)],
                outprefix=f"{folder}/affine_",
                mask=None if fixed_mask is None else _ants_mask(fixed_mask),
                mask_all_stages=True,
                aff_metric="mattes",
                aff_sampling=METRIC_BINS,
                aff_random_sampling_rate=schedule.sampling,
                aff_iterations=schedule.iterations,
                aff_shrink_factors=schedule.shrink,
                aff_smoothing_sigmas=schedule.smoothing,
            )
        except RuntimeError as error:
            raise RegistrationError(f"ANTs gave up: {error}") from error
        return inverse_of(_matrix_of(ants.read_transform(result["fwdtransforms"][0])))


def syn_registration(fixed: Volume, moving: Volume, start: Affine, *, seed: int) -> Deformation:
    """Register two volumes with SyN (Avants 2008, 10.1016/j.media.2007.06.004) after a known affine.

    The deformation stands on the grid of `fixed` and comes to rest at its border, so `fixed` may be a part of a
    larger volume: beyond it the affine alone holds.

    Parameters
    ----------
    fixed, moving : Volume
    start : ndarray, (4, 4)
        Moving RAS+ mm to fixed RAS+ mm; kept as it is.
    seed : int

    Raises
    ------
    RegistrationError
        When ANTs gives up.
    """
    import ants

    with scratch_folder() as folder, seeded(seed):
        initial = folder / "start.mat"
        ants.write_transform(_itk_affine(inverse_of(start)), str(initial))
        try:
            ants.registration(
                fixed=to_ants(fixed),
                moving=to_ants(moving),
                type_of_transform="SyNOnly",
                initial_transform=[str(initial)],
                outprefix=f"{folder}/syn_",
                syn_metric="mattes",
                syn_sampling=METRIC_BINS,
                reg_iterations=SYN_ITERATIONS,
                grad_step=SYN_STEP,
            )
        except RuntimeError as error:
            raise RegistrationError(f"ANTs gave up: {error}") from error
        (forward,) = folder.glob("syn_*[0-9]Warp.nii.gz")
        (inverse,) = folder.glob("syn_*InverseWarp.nii.gz")
        return Deformation(forward=_displacement(forward), inverse=_displacement(inverse))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Fix the seed of ANTs' random sampling, which it reads from the environment at each call.

    antspyx 0.6.3 ignores its own ``random_seed`` argument. With more than one ITK thread results still differ
    in the last digits; ``--deterministic`` uses one.
    """
    before = os.environ.get("ANTS_RANDOM_SEED")
    # ANTs takes 0 for "seed from the clock".
    os.environ["ANTS_RANDOM_SEED"] = str(seed + 1)
    try:
        yield
    finally:
        if before is None:
            del os.environ["ANTS_RANDOM_SEED"]
        else:
            os.environ["ANTS_RANDOM_SEED"] = before


def _ants_mask(brain_mask: BrainMask) -> Any:  # noqa: ANN401 - antspyx has no types
    return to_ants(Volume(data=brain_mask.data.astype(np.float32), voxel_to_ras=brain_mask.voxel_to_ras))


def _displacement(path: Path) -> DisplacementField:
    """Read a field that ITK wrote: (I, J, K, 1, 3), displacements in LPS mm."""
    image = nib.load(path)
    lps = np.asarray(image.dataobj, dtype=np.float32)[:, :, :, 0, :]
    return DisplacementField(data=lps * np.array([-1, -1, 1], dtype=np.float32), voxel_to_ras=image.affine)


def _itk_affine(fixed_to_moving: Affine) -> Any:  # noqa: ANN401 - antspyx has no types
    import ants

    lps = RAS_LPS @ fixed_to_moving @ RAS_LPS
    return ants.create_ants_transform(
        transform_type="AffineTransform",
        dimension=3,
        precision="double",
        matrix=lps[:3, :3],
        offset=lps[:3, 3],
    )


def _matrix_of(transform: Any) -> Affine:  # noqa: ANN401 - antspyx has no types
    """Return an ITK affine as fixed RAS+ mm to moving RAS+ mm, its centre of rotation folded in."""
    parameters = np.array(transform.parameters, dtype=np.float64)
    centre = np.array(transform.fixed_parameters, dtype=np.float64)
    linear, translation = parameters[:9].reshape(3, 3), parameters[9:]
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = translation + centre - linear @ centre
    result: Affine = RAS_LPS @ matrix @ RAS_LPS
    return result
