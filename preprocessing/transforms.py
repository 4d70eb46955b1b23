"""Transforms between native and template space: kept as ITK ``.h5`` files, applied in one interpolation.

A file ``from-A_to-B`` carries images from A to B, so, as everywhere in ITK, its transform leads points of B to
points of A. Any ITK tool (``antsApplyTransforms``, SimpleITK) reads it. Outside the box of its displacement field
nothing is displaced, and the affine alone holds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

import h5py
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from brainstage.pipeline.errors import ImageError
from brainstage.pipeline.files import publish
from brainstage.pipeline.records import Deformation
from brainstage.pipeline.volume import Affine, BrainMask, DisplacementField, Grid, Volume, inverse_of

Interpolation = Literal["linear", "nearest"]

_RAS_LPS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])
_PACKED_FROM: Final = 1000
_INTERPOLATORS: Final = {"linear": sitk.sitkLinear, "nearest": sitk.sitkNearestNeighbor}


def to_template_transform(
    native_to_template: Affine, deformation: Deformation | None = None
) -> sitk.Transform:
    """Return the transform that carries native images to the template.

    Parameters
    ----------
    native_to_template : ndarray, (4, 4)
        Native RAS+ mm to template RAS+ mm.
    deformation : Deformation, optional
    """
    affine = _affine(inverse_of(native_to_template))
    if deformation is None:
        return affine
    # SimpleITK applies the last one first: a template point is displaced, then led to native space.
    return sitk.CompositeTransform([affine, _field(deformation.forward)])


def to_native_transform(native_to_template: Affine, deformation: Deformation | None = None) -> sitk.Transform:
    """Return the transform that carries template images, such as an atlas, to native space."""
    affine = _affine(native_to_template)
    if deformation is None:
        return affine
    return sitk.CompositeTransform([_field(deformation.inverse), affine])


def write_transform(path: Path, transform: sitk.Transform) -> Path:
    """Write a transform as ITK HDF5 in one rename.

    Unlike ITK's own writer, which notes the time and the operating system: the same transform gives the same bytes.
    """
    return publish(path, lambda temporary: _write_itk_hdf5(temporary, transform))


def _write_itk_hdf5(path: Path, transform: sitk.Transform) -> None:
    parts = [transform]
    if transform.GetName() == "CompositeTransform":
        composite = sitk.CompositeTransform(transform)
        parts += [composite.GetNthTransform(n) for n in range(composite.GetNumberOfTransforms())]
    with h5py.File(path, "w") as file:
        for number, part in enumerate(parts):
            group = file.create_group(f"TransformGroup/{number}")
            # As ITK writes it: a variable-length string in an array of one.
            group["TransformType"] = np.array(
                [f"{part.GetName()}_double_3_3"], dtype=h5py.string_dtype("ascii")
            )
            if part.GetName() == "CompositeTransform":
                continue
            group["TransformFixedParameters"] = np.array(part.GetFixedParameters())
            parameters = _parameters(part)
            packed = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
            group.create_dataset(
                "TransformParameters", data=parameters, **(packed if parameters.size > _PACKED_FROM else {})
            )


def _parameters(transform: sitk.Transform) -> NDArray[np.float64]:
    if transform.GetName() != "DisplacementFieldTransform":
        return np.array(transform.GetParameters())
    field = sitk.DisplacementFieldTransform(transform).GetDisplacementField()
    parameters: NDArray[np.float64] = sitk.GetArrayFromImage(field).ravel()
    return parameters


def read_transform(path: Path) -> sitk.Transform:
    """Read a transform that :func:`write_transform` or any ITK tool wrote.

    Raises
    ------
    ImageError
        When ITK cannot read it.
    """
    try:
        return sitk.ReadTransform(str(path))
    except RuntimeError as error:
        raise ImageError(f"{path.name} is no transform that ITK reads") from error


def read_affine(path: Path) -> Affine:
    """Return the linear part of a ``from-T1w_to-<template>`` file as native RAS+ mm to template RAS+ mm."""
    transform = read_transform(path)
    if transform.GetName() == "CompositeTransform":
        transform = sitk.CompositeTransform(transform).GetNthTransform(0)
    affine = sitk.AffineTransform(transform)
    linear = np.array(affine.GetMatrix()).reshape(3, 3)
    centre = np.array(affine.GetCenter())
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = np.array(affine.GetTranslation()) + centre - linear @ centre
    return inverse_of(_RAS_LPS @ matrix @ _RAS_LPS)


def read_field(path: Path) -> DisplacementField | None:
    """Return the displacements in a file of :func:`write_transform`, in either direction; None where it has none.

    Those of ``from-T1w_to-<template>`` are added to a template point before its affine, those of the way back to a
    native point after it.

    Raises
    ------
    ImageError
        When ITK cannot read it.
    """
    transform = read_transform(path)
    if transform.GetName() != "CompositeTransform":
        return None
    composite = sitk.CompositeTransform(transform)
    parts = [composite.GetNthTransform(n) for n in range(composite.GetNumberOfTransforms())]
    [part] = [part for part in parts if part.GetName() == "DisplacementFieldTransform"]
    field = sitk.DisplacementFieldTransform(part).GetDisplacementField()
    lps = sitk.GetArrayFromImage(field).transpose(2, 1, 0, 3)
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(field.GetDirection(), (3, 3)) * field.GetSpacing()
    matrix[:3, 3] = field.GetOrigin()
    return DisplacementField(data=lps * np.array([-1.0, -1.0, 1.0]), voxel_to_ras=_RAS_LPS @ matrix)


def apply_transform(
    volume: Volume, grid: Grid, transform: sitk.Transform, interpolation: Interpolation = "linear"
) -> Volume:
    """Carry a volume to another grid in one interpolation; 0 outside its field of view.

    Use ``interpolation="nearest"`` for labels.
    """
    moved = sitk.Resample(
        _image(volume), _reference(grid), transform, _INTERPOLATORS[interpolation], 0.0, sitk.sitkFloat32
    )
    return Volume(data=sitk.GetArrayFromImage(moved).T, voxel_to_ras=grid.voxel_to_ras)


def apply_transform_to_mask(brain_mask: BrainMask, grid: Grid, transform: sitk.Transform) -> BrainMask:
    """Carry a mask to another grid: the voxels that are brain to at least one half."""
    fraction = Volume(data=brain_mask.data.astype(np.float32), voxel_to_ras=brain_mask.voxel_to_ras)
    return BrainMask(
        data=apply_transform(fraction, grid, transform).data >= 0.5, voxel_to_ras=grid.voxel_to_ras
    )


def labels_to_native(labels: Volume, native_grid: Grid, template_to_native: Path) -> Volume:
    """Carry an atlas in template space to a scan's native space.

    Parameters
    ----------
    labels : Volume
        Integers stored as float32, on any grid in template space.
    native_grid : Grid
        Of the scan's ``desc-preproc_T1w``.
    template_to_native : Path
        The scan's ``from-MNI152NLin2009aSym_to-T1w_mode-image_xfm.h5``.
    """
    return apply_transform(labels, native_grid, read_transform(template_to_native), "nearest")


def _affine(ras_to_ras: Affine) -> sitk.AffineTransform:
    lps = _RAS_LPS @ ras_to_ras @ _RAS_LPS
    affine = sitk.AffineTransform(3)
    affine.SetMatrix(lps[:3, :3].ravel().tolist())
    affine.SetTranslation(lps[:3, 3].tolist())
    return affine


def _field(field: DisplacementField) -> sitk.DisplacementFieldTransform:
    lps = field.data * np.array([-1, -1, 1], dtype=np.float32)
    image = sitk.GetImageFromArray(lps.transpose(2, 1, 0, 3).astype(np.float64), isVector=True)
    _place(image, field.voxel_to_ras)
    return sitk.DisplacementFieldTransform(image)


def _image(volume: Volume) -> sitk.Image:
    image = sitk.GetImageFromArray(volume.data.T)
    _place(image, volume.voxel_to_ras)
    return image


def _reference(grid: Grid) -> sitk.Image:
    image = sitk.Image(grid.shape, sitk.sitkUInt8)
    _place(image, grid.voxel_to_ras)
    return image


def _place(image: sitk.Image, voxel_to_ras: Affine) -> None:
    lps = _RAS_LPS @ voxel_to_ras
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
