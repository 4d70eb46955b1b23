"""What makes an outline of a hippocampus wrong, done to heads on purpose, and what should do no harm.

An outline is *wrong* where its overlap with the truth is below :data:`WRONG_DICE`, or its volume differs from that of
the undisturbed head by more than :data:`WRONG_VOLUME`; *right* where its overlap is hardly below that of the
undisturbed head. What lies between is neither. The truth is a label, or, for heads without, the undisturbed outline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
from labelled_heads import SIDES, Specimen, dice
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from brainstage.pipeline.volume import Affine, BrainMask, Volume
from brainstage.preprocessing.hippocampi import CENTRES_MM, Hippocampus, Segment, find_hippocampi

WRONG_DICE: Final = 0.6
WRONG_VOLUME: Final = 0.25
RIGHT_BELOW: Final = 0.05
UNDISTURBED: Final = "undisturbed"
HARM: Final = "harmful"
NO_HARM: Final = "harmless"

State = Literal["right", "wrong", "between"]
Disturbance = Callable[[Specimen, float, np.random.Generator], Specimen]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One way to disturb a head.

    Attributes
    ----------
    name, unit : str
    disturb : callable
    strengths : tuple of float
    """

    name: str
    unit: str
    disturb: Disturbance
    strengths: tuple[float, ...]


def displaced(specimen: Specimen, strength: float, rng: np.random.Generator) -> Specimen:
    """Let the affine be wrong by a shift of so many mm: the box is cut beside the hippocampus."""
    return _misregistered(specimen, np.eye(3), strength * _direction(rng))


def turned(specimen: Specimen, strength: float, rng: np.random.Generator) -> Specimen:
    """Let the affine be wrong by a turn of so many degrees about the middle of the hippocampi."""
    turn = Rotation.from_rotvec(strength * _direction(rng), degrees=True).as_matrix()
    return _misregistered(specimen, turn, np.zeros(3))


def scaled(specimen: Specimen, strength: float, rng: np.random.Generator) -> Specimen:
    """Let the affine be wrong by a scale, larger or smaller."""
    factor = strength if rng.random() < 0.5 else 1.0 / strength
    return _misregistered(specimen, factor * np.eye(3), np.zeros(3))


def flipped(specimen: Specimen, strength: float, _: np.random.Generator) -> Specimen:
    """Turn the head over along an axis, as a wrong header does: 1 front to back, 2 upside down."""
    axis = int(strength)

    def over(array: NDArray[Any]) -> NDArray[Any]:
        return np.flip(array, axis)

    mask = specimen.brain_mask
    return replace(
        specimen.with_data(over(specimen.head.data)),
        brain_mask=mask and BrainMask(data=over(mask.data), voxel_to_ras=mask.voxel_to_ras),
        truth={side: over(inside) for side, inside in specimen.truth.items()},
    )


def moved(specimen: Specimen, strength: float, rng: np.random.Generator) -> Specimen:
    """Let the head move by so many mm and degrees during the scan."""
    from brainstage.workflows.synthetic.motion import KINDS, Sampling, with_motion

    head = specimen.head
    data = with_motion(
        head.data,
        head.spacing_mm,
        kind=KINDS[int(rng.integers(len(KINDS)))],
        strength=strength,
        sampling=Sampling(axis=int(rng.integers(3)), order="linear", partial_fourier=1.0),
        rng=rng,
    )
    return specimen.with_data(_where_measured(head, data))


def ghosted(specimen: Specimen, strength: float, rng: np.random.Generator) -> Specimen:
    """Lay a copy of the head over it, half a field of view away, as pulsation does: strength of its intensity."""
    head, axis = specimen.head, int(rng.integers(1, 3))
    copy = np.roll(head.data, head.shape[axis] // 2, axis)
    return specimen.with_data(_where_measured(head, head.data + strength * copy))


def noisy(specimen: Specimen, strength: float, rng: np.random.Generator) -> Specimen:
    """Add Rician noise of so many per cent of white matter."""
    head, sd = specimen.head, strength / 100.0 * specimen.white
    real, imaginary = (rng.normal(0.0, sd, head.shape) for _ in range(2))
    return specimen.with_data(_where_measured(head, np.hypot(head.data + real, imaginary)))


def blurred(specimen: Specimen, strength: float, _: np.random.Generator) -> Specimen:
    """Smooth with a Gaussian of so many mm full width at half maximum."""
    sigma = strength / 2.355 / np.array(specimen.head.spacing_mm)
    return specimen.with_data(ndimage.gaussian_filter(specimen.head.data, sigma))


def bent(specimen: Specimen, strength: float, _: np.random.Generator) -> Specimen:
    """Bend the scale of intensities by a power."""
    data, top = specimen.head.data, float(np.percentile(specimen.head.data, 99.9))
    return specimen.with_data(top * np.clip(data / top, 0.0, None) ** strength)


def inverted(specimen: Specimen, strength: float, _: np.random.Generator) -> Specimen:
    """Turn dark and bright round, as in another contrast; the air stays dark. The strength is how far."""
    data, white = specimen.head.data, specimen.white
    tissue = data > 0.3 * specimen.fluid
    other = np.clip(white + specimen.fluid - data, 0.2 * specimen.fluid, None)
    return specimen.with_data(np.where(tissue, (1.0 - strength) * data + strength * other, data))


def dark_lesion(specimen: Specimen, strength: float, rng: np.random.Generator) -> Specimen:
    """Put a ball of fluid of so many mm across into each hippocampus."""
    return _with_balls(specimen, strength, specimen.fluid, rng)


def bright_lesion(specimen: Specimen, strength: float, rng: np.random.Generator) -> Specimen:
    """Put a ball brighter than white matter, of so many mm across, into each hippocampus."""
    return _with_balls(specimen, strength, 1.3 * specimen.white, rng)


def field_ends(specimen: Specimen, strength: float, rng: np.random.Generator) -> Specimen:
    """End the field of view inside the hippocampi, in front or below, so that a share of their extent is lost."""
    axis, end = ((1, "high"), (2, "low"))[int(rng.integers(2))]
    keep = _without_end(specimen, axis, end, strength)
    first = np.zeros(4)
    first[axis] = keep[axis].start or 0
    matrix = specimen.head.voxel_to_ras.copy()
    matrix[:, 3] += matrix @ first
    mask = specimen.brain_mask
    return replace(
        specimen,
        head=Volume(data=specimen.head.data[keep], voxel_to_ras=matrix),
        brain_mask=mask and BrainMask(data=mask.data[keep], voxel_to_ras=matrix),
    )


def pole_cut(specimen: Specimen, strength: float, rng: np.random.Generator) -> Specimen:
    """Take the signal from the front end of the temporal lobes, a share of the hippocampi with it, or from below."""
    axis, end = ((1, "high"), (2, "low"))[int(rng.integers(2))]
    data = np.zeros_like(specimen.head.data)
    keep = _without_end(specimen, axis, end, strength)
    other = _middle_band(specimen, axis)  # the void is local: what lies far above or behind keeps its signal
    data[keep] = specimen.head.data[keep]
    data[other] = specimen.head.data[other]
    return specimen.with_data(data)


def faded(specimen: Specimen, strength: float, _: np.random.Generator) -> Specimen:
    """Let the signal die away around the front of each hippocampus, within a radius in mm, as near air."""
    data = specimen.head.data.astype(np.float64)
    for inside in specimen.truth.values():
        places = np.argwhere(inside)
        front = places[places[:, 1] >= np.quantile(places[:, 1], 0.7)].mean(axis=0)
        data *= 1.0 - np.exp(-0.5 * (_distances(specimen, front) / (0.5 * strength)) ** 2)
    return specimen.with_data(data)


HARMFUL: Final = (
    Kind(name="box beside it", unit="mm", disturb=displaced, strengths=(20.0, 30.0, 40.0, 55.0)),
    Kind(name="affine turned", unit="°", disturb=turned, strengths=(40.0, 70.0, 110.0, 150.0)),
    Kind(name="affine scaled", unit="times", disturb=scaled, strengths=(1.5, 2.0, 2.6)),
    Kind(name="turned over", unit="axis", disturb=flipped, strengths=(1.0, 2.0)),
    Kind(name="motion", unit="mm and °", disturb=moved, strengths=(6.0, 9.0, 13.0)),
    Kind(name="ghost", unit="of the head", disturb=ghosted, strengths=(0.7, 1.0, 1.5)),
    Kind(name="heavy noise", unit="%", disturb=noisy, strengths=(25.0, 40.0, 60.0)),
    Kind(name="heavy blur", unit="mm", disturb=blurred, strengths=(6.0, 9.0, 12.0)),
    Kind(name="other contrast", unit="of the way", disturb=inverted, strengths=(0.6, 1.0)),
    Kind(name="dark lesion", unit="mm", disturb=dark_lesion, strengths=(11.0, 15.0, 20.0)),
    Kind(name="bright lesion", unit="mm", disturb=bright_lesion, strengths=(11.0, 15.0, 20.0)),
    Kind(name="field of view ends", unit="of it", disturb=field_ends, strengths=(0.3, 0.5, 0.7, 0.9)),
    Kind(name="temporal pole cut", unit="of it", disturb=pole_cut, strengths=(0.3, 0.5, 0.7, 0.9)),
    Kind(name="signal loss", unit="mm", disturb=faded, strengths=(12.0, 18.0, 25.0)),
)
HARMLESS: Final = (
    Kind(name="box a little beside it", unit="mm", disturb=displaced, strengths=(4.0, 7.0)),
    Kind(name="affine a little turned", unit="°", disturb=turned, strengths=(5.0, 10.0)),
    Kind(name="affine a little scaled", unit="times", disturb=scaled, strengths=(1.05, 1.1)),
    Kind(name="little motion", unit="mm and °", disturb=moved, strengths=(1.0, 2.0)),
    Kind(name="noise", unit="%", disturb=noisy, strengths=(3.0, 6.0)),
    Kind(name="blur", unit="mm", disturb=blurred, strengths=(1.5, 2.5)),
    Kind(name="contrast", unit="power", disturb=bent, strengths=(0.7, 0.85, 1.2, 1.4)),
)


def outline_rows(specimen: Specimen, segment: Segment, position: int, *, seed: int) -> list[dict[str, Any]]:
    """Return a row an outline: of the undisturbed head, and of every kind at one strength, which goes by `position`.

    Parameters
    ----------
    specimen : Specimen
        With no `truth` where its own undisturbed outline is to be the truth.
    segment : callable
        The network.
    position : int
        Of the specimen among the others.
    seed : int
    """
    first = found_in(specimen, segment)
    sides = tuple(specimen.truth) or SIDES
    if not specimen.truth:
        outlines = {side: one.inside(specimen.grid) for side, one in first.items() if one is not None}
        specimen, sides = replace(specimen, truth=outlines), tuple(outlines)
    usual = {side: _measured(specimen, side, first[side]) for side in sides}
    rows = [_row(specimen, side, first[side], UNDISTURBED, NO_HARM, 0.0, usual[side]) for side in sides]
    for harm, kinds in ((HARM, HARMFUL), (NO_HARM, HARMLESS)):
        for number, kind in enumerate(kinds):
            strength = kind.strengths[(position + number) % len(kind.strengths)]
            rng = np.random.default_rng((seed, position, number, harm == HARM))
            disturbed = kind.disturb(specimen, strength, rng)
            found = found_in(disturbed, segment)
            rows += [
                _row(disturbed, side, found[side], kind.name, harm, strength, usual[side]) for side in sides
            ]
    return rows


def found_in(specimen: Specimen, segment: Segment) -> dict[str, Hippocampus | None]:
    """Return what the stage finds in a head, whatever its quality."""
    return find_hippocampi(specimen.head, specimen.native_to_template, segment)


def state_of(row: Mapping[str, Any]) -> State:
    """Tell whether the outline of a row is right or wrong."""
    overlap, usual = float(row["dice"]), float(row["undisturbed_dice"])
    found, before = float(row["volume_ml"] or 0.0), float(row["undisturbed_ml"] or row["truth_ml"])
    if overlap < WRONG_DICE or (row["kind"] != UNDISTURBED and abs(found / before - 1.0) > WRONG_VOLUME):
        return "wrong"
    return "right" if overlap >= usual - RIGHT_BELOW else "between"


def is_withheld(row: Mapping[str, Any]) -> bool:
    """Tell whether the bounds in use object to the outline of a row."""
    from brainstage.preprocessing.hippocampus_quality import objection

    if row["volume_ml"] in ("", None):
        return True
    names = [name for name in row if name.startswith("quality_")]
    kept = Hippocampus(
        probability=Volume(data=np.zeros((1, 1, 1), dtype=np.float32), voxel_to_ras=np.eye(4)),
        volume_ml=float(row["volume_ml"]),
        quality={
            name.removeprefix("quality_"): None if row[name] in ("", None) else float(row[name])
            for name in names
        },
    )
    return objection(kept) is not None


def outlines_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return, kind by kind, how many wrong outlines and how many right ones are withheld, as Markdown."""
    lines = [
        "| done to the head | outlines | wrong | of these withheld | right | of these withheld | between |",
        "|---|---|---|---|---|---|---|",
    ]
    kinds = dict.fromkeys(row["kind"] for row in rows)
    lines += [_line(kind, [row for row in rows if row["kind"] == kind]) for kind in kinds]
    lines.append(_line("**all that harm**", [row for row in rows if row["harm"] == HARM]))
    lines.append(_line("**all without harm**", [row for row in rows if row["harm"] != HARM]))
    return lines


def shares(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Return the share of wrong outlines that are withheld, and that of right ones without harm, per cent."""
    wrong = [row for row in rows if state_of(row) == "wrong"]
    right = [row for row in rows if row["harm"] != HARM and state_of(row) == "right"]
    return _withheld(wrong), _withheld(right)


def _withheld(rows: Sequence[Mapping[str, Any]]) -> float:
    return 100.0 * sum(map(is_withheld, rows)) / len(rows) if rows else float("nan")


def _line(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    by_state = {
        state: [row for row in rows if state_of(row) == state] for state in ("wrong", "right", "between")
    }

    def share(state: str) -> str:
        return f"{_withheld(by_state[state]):.1f} %" if by_state[state] else ""

    return (
        f"| {name} | {len(rows)} | {len(by_state['wrong'])} | {share('wrong')} | {len(by_state['right'])} | "
        f"{share('right')} | {len(by_state['between'])} |"
    )


def _measured(specimen: Specimen, side: str, found: Hippocampus | None) -> tuple[float, float | None]:
    """Return overlap and volume of the undisturbed outline; no volume where it is wrong itself."""
    if found is None:
        return 0.0, None
    overlap = dice(found.inside(specimen.grid), specimen.truth[side])
    return overlap, found.volume_ml if overlap >= WRONG_DICE else None


def _row(
    specimen: Specimen,
    side: str,
    found: Hippocampus | None,
    kind: str,
    harm: str,
    strength: float,
    usual: tuple[float, float | None],
) -> dict[str, Any]:
    truth = specimen.truth[side]
    row = {
        "dataset": specimen.dataset,
        "scan": specimen.scan,
        "side": side,
        "kind": kind,
        "harm": harm,
        "strength": strength,
        "dice": round(dice(found.inside(specimen.grid), truth), 4) if found else 0.0,
        "undisturbed_dice": round(usual[0], 4),
        "volume_ml": round(found.volume_ml, 4) if found else "",
        "undisturbed_ml": round(usual[1], 4) if usual[1] is not None else "",
        "truth_ml": round(float(truth.sum()) * specimen.grid.voxel_volume_mm3 / 1000.0, 4),
    }
    quality = found.quality if found else {}
    return row | {f"quality_{n}": "" if v is None else float(f"{v:.5g}") for n, v in quality.items()}


def _misregistered(specimen: Specimen, linear: NDArray[np.float64], shift: NDArray[np.float64]) -> Specimen:
    """Let a wrong map follow the affine: about the middle of the template's hippocampi, mm."""
    about = np.mean(list(CENTRES_MM.values()), axis=0)
    wrong: Affine = np.eye(4)
    wrong[:3, :3] = linear
    wrong[:3, 3] = about - linear @ about + shift
    return replace(specimen, native_to_template=wrong @ specimen.native_to_template)


def _direction(rng: np.random.Generator) -> NDArray[np.float64]:
    drawn = rng.normal(size=3)
    direction: NDArray[np.float64] = drawn / np.linalg.norm(drawn)
    return direction


def _where_measured(head: Volume, data: NDArray[Any]) -> NDArray[Any]:
    """Leave a background of zero as it is: stripping came after the scan."""
    zero = head.data == 0
    return np.where(zero, 0.0, data) if zero.mean() > 0.3 else data


def _distances(specimen: Specimen, centre: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each voxel's distance from a place in voxels, mm."""
    axes = np.ogrid[tuple(slice(0, n) for n in specimen.head.shape)]
    squares = [
        ((axis - c) * s) ** 2 for axis, c, s in zip(axes, centre, specimen.head.spacing_mm, strict=True)
    ]
    return np.asarray(np.sqrt(squares[0] + squares[1] + squares[2]))


def _with_balls(specimen: Specimen, across_mm: float, value: float, rng: np.random.Generator) -> Specimen:
    data = specimen.head.data.astype(np.float64)
    for inside in specimen.truth.values():
        places = np.argwhere(inside)
        centre = places[int(rng.integers(len(places)))]
        part = np.clip(0.5 + (0.5 * across_mm - _distances(specimen, centre)) / 1.5, 0.0, 1.0)
        data = (1.0 - part) * data + part * value
    return specimen.with_data(data)


def _without_end(specimen: Specimen, axis: int, end: str, share: float) -> tuple[slice, slice, slice]:
    """Return the voxels that are left when the hippocampi lose a share of their extent at one end of an axis."""
    either = np.any(list(specimen.truth.values()), axis=0)
    filled = np.flatnonzero(either.any(axis=tuple(a for a in range(3) if a != axis)))
    low, high = int(filled[0]), int(filled[-1]) + 1
    lost = round(share * (high - low))
    kept = slice(None, high - lost) if end == "high" else slice(low + lost, None)
    i, j, k = (kept if a == axis else slice(None) for a in range(3))
    return i, j, k


def _middle_band(specimen: Specimen, axis: int) -> tuple[slice, slice, slice]:
    """Return what a local loss of signal spares: everything well above, or well behind, the hippocampi."""
    other = 2 if axis == 1 else 1
    either = np.any(list(specimen.truth.values()), axis=0)
    filled = np.flatnonzero(either.any(axis=tuple(a for a in range(3) if a != other)))
    margin = round(15.0 / specimen.head.spacing_mm[other])
    spared = (
        slice(int(filled[-1]) + margin, None) if other == 2 else slice(None, max(int(filled[0]) - margin, 0))
    )
    i, j, k = (spared if a == other else slice(None) for a in range(3))
    return i, j, k
