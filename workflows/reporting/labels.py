"""What stands on the slices of a mosaic: which side is which, and where each slice lies."""

from __future__ import annotations

from brainstage.workflows.reporting.drawing import Note
from brainstage.workflows.reporting.mosaic import SAGITTAL, Mosaic, Scene, Tile


def directions(mosaic: Mosaic) -> list[Note]:
    """Return the letters at the outer slices of each row: left and right, or posterior and anterior."""
    notes = []
    for row in mosaic.rows:
        for tile in (row[0], row[-1]):
            low, high = ("P", "A") if tile.axis == SAGITTAL else ("L", "R")
            middle = tile.top + tile.height / 2
            notes.append(Note(text=low, left=tile.left + 1, top=middle, vertical="center"))
            right = tile.left + tile.width - 1
            notes.append(Note(text=high, left=right, top=middle, horizontal="right", vertical="center"))
    return notes


def slice_indices(mosaic: Mosaic, scene: Scene) -> list[Note]:
    """Name each slice by its voxel index in the RAS volume, as a viewer shows it."""
    return [
        _below(tile, f"{'ijk'[tile.axis]} {scene.first_index[tile.axis] + tile.index}")
        for tile in mosaic.tiles
    ]


def millimetres(mosaic: Mosaic, scene: Scene) -> list[Note]:
    """Name each slice by its template coordinate in mm."""
    notes = []
    for tile in mosaic.tiles:
        along = scene.voxel_to_ras[tile.axis, tile.axis] * tile.index + scene.voxel_to_ras[tile.axis, 3]
        notes.append(_below(tile, f"{'xyz'[tile.axis]} {round(float(along)):d}"))
    return notes


def _below(tile: Tile, text: str) -> Note:
    return Note(text=text, left=tile.left + 1, top=tile.top + tile.height, vertical="bottom")
