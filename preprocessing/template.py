"""The embedded template: MNI152NLin2009aSym, as nilearn carries it (Fonov 2011, 10.1016/j.neuroimage.2010.07.033).

197 x 233 x 189 voxels of 1 mm, RAS, already skull-stripped, brain stem cut at z = -72 mm, mirror-symmetric.
Nothing is downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import as_file, files
from typing import Final

import numpy as np
from numpy.typing import NDArray

from brainstage.pipeline.errors import ToolNotFoundError
from brainstage.pipeline.files import sha256_of_file
from brainstage.pipeline.nifti import read_raw
from brainstage.pipeline.volume import BrainMask, Grid, Volume
from brainstage.preprocessing.resampling import resampled, resampled_mask

_FOLDER: Final = "datasets/data"
_NAME: Final = "mni_icbm152_{tissue}_tal_nlin_sym_09a_converted.nii.gz"
_TISSUE_MAXIMUM: Final = 255.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Template:
    """The template on one grid.

    Attributes
    ----------
    t1w : Volume
        Brain only, 0 outside, about 0 to 255.
    brain_mask : BrainMask
    resolution_mm : float
    """

    t1w: Volume
    brain_mask: BrainMask
    resolution_mm: float

    @property
    def grid(self) -> Grid:
        """The lattice of every image here."""
        return self.t1w.grid

    # Made when they are asked for: most grids are only ever looked at for the brain.
    @cached_property
    def grey_matter(self) -> NDArray[np.float32]:
        """Probability of grey matter, 0 to 1: (I, J, K) float32."""
        return _on_grid("gm", self.resolution_mm).data / np.float32(_TISSUE_MAXIMUM)

    @cached_property
    def white_matter(self) -> NDArray[np.float32]:
        """Probability of white matter, 0 to 1: (I, J, K) float32."""
        return _on_grid("wm", self.resolution_mm).data / np.float32(_TISSUE_MAXIMUM)


@cache
def load_template(resolution_mm: float = 1.0) -> Template:
    """Return the template with voxels of 1, 1.5 or 2 mm; kept for the life of the process.

    Raises
    ------
    ToolNotFoundError
        When the installed nilearn does not carry it.
    """
    packaged = _packaged("t1")
    brain_mask = BrainMask(data=packaged.data > 0, voxel_to_ras=packaged.voxel_to_ras)
    t1w = _on_grid("t1", resolution_mm)
    if resolution_mm != 1.0:
        brain_mask = resampled_mask(brain_mask, t1w.grid)
    return Template(t1w=t1w, brain_mask=brain_mask, resolution_mm=resolution_mm)


def _on_grid(tissue: str, resolution_mm: float) -> Volume:
    packaged = _packaged(tissue)
    return packaged if resolution_mm == 1.0 else resampled(packaged, packaged.grid.rescaled(resolution_mm))


@cache
def template_sha256() -> str:
    """Return the hash of the template's T1w file, part of the ``preprocessing_id``."""
    with as_file(files("nilearn") / _FOLDER / _NAME.format(tissue="t1")) as path:
        return sha256_of_file(path)


@cache
def _packaged(tissue: str) -> Volume:
    # Kept too: most processes need the template on two grids, and unpacking takes longer than resampling.
    with as_file(files("nilearn") / _FOLDER / _NAME.format(tissue=tissue)) as path:
        if not path.is_file():
            raise ToolNotFoundError(
                f"nilearn does not carry {path.name}; install nilearn again (0.11 or newer)"
            )
        raw = read_raw(path)
    return Volume(data=raw.data, voxel_to_ras=raw.sform if raw.sform is not None else raw.fallback)
