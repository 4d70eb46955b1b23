"""What the volumes benchmark calls right and wrong, what it does to heads, and how it counts."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from brainstage.pipeline.volume import BrainMask, Volume
from brainstage.preprocessing.hippocampi import CENTRES_MM

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import outline_failures
import volumes
import volumes_table
from labelled_heads import Specimen


@pytest.fixture(scope="module")
def head() -> Specimen:
    """A grey ball of a brain with two hippocampi where the template has them, in voxels of 2 mm."""
    shape = (80, 90, 80)
    matrix = np.diag([2.0, 2.0, 2.0, 1.0])
    matrix[:3, 3] = (-79.0, -110.0, -90.0)
    places = matrix[:3, :3] @ np.indices(shape).reshape(3, -1) + matrix[:3, 3:]

    def ball(centre, radius):
        return (np.linalg.norm(places - np.array(centre)[:, None], axis=0) < radius).reshape(shape)

    brain = ball((0.0, -20.0, 0.0), 68.0)
    truth = {side: ball(centre, 10.0) for side, centre in CENTRES_MM.items()}
    rng = np.random.default_rng(0)
    data = np.where(brain, 100.0, 5.0) + rng.normal(0.0, 1.0, shape)
    for inside in truth.values():
        data[inside] -= 30.0
    volume = Volume(data=data, voxel_to_ras=matrix)
    return Specimen(
        dataset="phantoms",
        scan="sub-01",
        head=volume,
        brain_mask=BrainMask(data=brain, voxel_to_ras=matrix),
        native_to_template=np.eye(4),
        grid=volume.grid,
        truth=truth,
        fluid=20.0,
        white=100.0,
    )


def row(**changed) -> dict:
    usual = {
        "dataset": "a", "scan": "sub-01", "side": "left", "kind": "noise", "harm": outline_failures.NO_HARM,
        "dice": 0.85, "undisturbed_dice": 0.86, "volume_ml": 3.0, "undisturbed_ml": 3.1, "truth_ml": 3.5,
    }  # fmt: skip
    return usual | changed


@pytest.mark.parametrize(
    ("changed", "state"),
    [
        ({}, "right"),
        ({"dice": 0.82}, "right"),
        ({"dice": 0.80}, "between"),
        ({"dice": 0.59}, "wrong"),
        ({"volume_ml": 3.9}, "wrong"),
        ({"volume_ml": 2.3}, "wrong"),
        ({"volume_ml": "", "dice": 0.0}, "wrong"),
        # A head whose undisturbed outline is wrong is compared with its label.
        ({"undisturbed_dice": 0.5, "undisturbed_ml": "", "volume_ml": 3.5}, "right"),
        # Labels of another definition are larger: that alone makes no undisturbed outline wrong.
        ({"kind": outline_failures.UNDISTURBED, "volume_ml": 2.5, "undisturbed_ml": 2.5}, "right"),
    ],
)
def test_right_and_wrong_outlines(changed, state) -> None:
    assert outline_failures.state_of(row(**changed)) == state


def test_what_was_not_found_is_withheld() -> None:
    assert outline_failures.is_withheld(row(volume_ml=""))


def test_the_shares_count_wrong_ones_of_all_and_right_ones_without_harm(monkeypatch) -> None:
    monkeypatch.setattr(outline_failures, "is_withheld", lambda one: one["withheld"])
    rows = [
        row(withheld=True, dice=0.1),
        row(withheld=True, dice=0.1, harm=outline_failures.HARM),
        row(withheld=False, dice=0.1, harm=outline_failures.HARM),
        row(withheld=False),
        row(withheld=True),
        row(withheld=True, harm=outline_failures.HARM),
        row(withheld=True, dice=0.8),
    ]
    wrong, right = outline_failures.shares(rows)
    assert wrong == pytest.approx(200.0 / 3.0)
    assert right == pytest.approx(50.0)
    [harmless] = [line for line in outline_failures.outlines_table(rows) if "without harm" in line]
    assert harmless == "| **all without harm** | 4 | 1 | 100.0 % | 2 | 50.0 % | 1 |"


@pytest.mark.parametrize(
    "kind", [*outline_failures.HARMFUL, *outline_failures.HARMLESS], ids=lambda kind: kind.name
)
def test_every_kind_disturbs_at_every_strength(kind, head) -> None:
    for strength in kind.strengths:
        disturbed = kind.disturb(head, strength, np.random.default_rng(0))
        again = kind.disturb(head, strength, np.random.default_rng(0))
        assert np.array_equal(disturbed.head.data, again.head.data)
        assert np.array_equal(disturbed.native_to_template, again.native_to_template)
        same = disturbed.head.shape == head.head.shape and np.array_equal(disturbed.head.data, head.head.data)
        assert not (same and np.array_equal(disturbed.native_to_template, head.native_to_template))
        assert all(inside.shape == disturbed.grid.shape for inside in disturbed.truth.values())


@pytest.mark.parametrize("strength", [20.0, 55.0])
def test_a_box_is_cut_so_far_from_the_hippocampus(head, strength) -> None:
    wrong = outline_failures.displaced(head, strength, np.random.default_rng(0)).native_to_template
    for centre in CENTRES_MM.values():
        apart = np.linalg.inv(wrong)[:3] @ [*centre, 1.0] - centre
        assert np.linalg.norm(apart) == pytest.approx(strength)


def test_a_wrong_turn_leaves_the_middle_of_the_hippocampi(head) -> None:
    wrong = outline_failures.turned(head, 90.0, np.random.default_rng(0)).native_to_template
    middle = np.mean(list(CENTRES_MM.values()), axis=0)
    assert wrong[:3] @ [*middle, 1.0] == pytest.approx(middle)
    assert np.linalg.det(wrong[:3, :3]) == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_field_of_view_ends_where_it_says(head, share, seed) -> None:
    cut = outline_failures.field_ends(head, share, np.random.default_rng(seed))
    index = np.linalg.inv(cut.head.voxel_to_ras) @ head.head.voxel_to_ras
    either = np.any(list(head.truth.values()), axis=0)
    places = index[:3, :3] @ np.argwhere(either).T + index[:3, 3:]
    shape = np.array(cut.head.shape)[:, None]
    seen = ((places > -0.5) & (places < shape - 0.5)).all(axis=0)
    extents = [
        np.ptp(np.argwhere(either)[:, axis]) + 1 - (np.ptp(np.argwhere(either)[seen][:, axis]) + 1)
        for axis in (1, 2)
    ]
    whole = [np.ptp(np.argwhere(either)[:, axis]) + 1 for axis in (1, 2)]
    assert max(lost / all_ for lost, all_ in zip(extents, whole, strict=True)) == pytest.approx(
        share, abs=0.1
    )
    # What is left keeps its place.
    first = np.linalg.inv(index)[:3, 3].round().astype(int)
    assert cut.head.data[0, 0, 0] == head.head.data[tuple(first)]


def test_a_temporal_pole_that_is_cut_leaves_the_rest_of_the_head(head) -> None:
    cut = outline_failures.pole_cut(head, 0.5, np.random.default_rng(0))
    either = np.any(list(head.truth.values()), axis=0)
    gone = (cut.head.data == 0.0) & (head.head.data != 0.0)
    assert 0.3 < (gone & either).sum() / either.sum() < 0.7
    assert gone.mean() < 0.4


@pytest.mark.parametrize(("disturb", "level"), [("dark_lesion", 20.0), ("bright_lesion", 130.0)])
def test_a_lesion_lies_in_each_hippocampus(head, disturb, level) -> None:
    harmed = getattr(outline_failures, disturb)(head, 11.0, np.random.default_rng(0))
    core = np.abs(harmed.head.data - level) < 0.5
    for inside in head.truth.values():
        _, count = ndimage.label(core & inside)
        assert count >= 1
    assert core.sum() * 8.0 < 2 * 4.2 * 5.5**3


def test_what_is_turned_over_takes_the_truth_along(head) -> None:
    over = outline_failures.flipped(head, 2.0, np.random.default_rng(0))
    for side, inside in over.truth.items():
        assert over.head.data[inside].mean() == pytest.approx(head.head.data[head.truth[side]].mean())


@pytest.mark.parametrize("change", volumes.CHANGES, ids=lambda change: f"{change.name} {change.strength}")
def test_changes_keep_the_brain_where_the_header_says(change, head) -> None:
    changed = change.make(head, np.random.default_rng(0))
    bright = changed.data > 60.0
    places = changed.grid.places_mm(np.argwhere(bright))
    moved = volumes.SHIFT_MM if change.name.startswith("shifted") else 0.0
    middle = np.array([0.0, -20.0, 0.0]) + moved
    assert places.mean(axis=1) == pytest.approx(middle, abs=2.5)
    volume_ml = bright.sum() * changed.grid.voxel_volume_mm3 / 1000.0
    whole = (head.head.data > 60.0).sum() * 0.008
    assert volume_ml == pytest.approx(whole, rel=0.04)


def test_manual_labels_are_grouped_by_the_table(tmp_path) -> None:
    table = tmp_path / "names.csv"
    table.write_text("Label Number,Label Name,Class\n1,a,GM\n2,b,WM\n3,c,CSF\n4,d,None\n5,e,\n900,f,GM\n")
    labels = np.arange(6, dtype=np.int16).reshape(1, 2, 3)
    assert volumes.grouped_labels(labels, table).ravel().tolist() == [0, 1, 2, 3, 0, 0]


def loss(scan: str, side: str, measure: str, value: float, case: str = "thinner, both") -> dict:
    return volumes.row_of("losses", f"a/{scan}", measure, value, case=case, strength=0.2, side=side)


def test_a_seen_loss_is_a_persons_and_in_proportion_to_the_truth() -> None:
    rows = [
        loss("sub-01", "left", "true_loss", 20.0), loss("sub-01", "left", "found_loss", 18.0),
        loss("sub-01", "right", "true_loss", 25.0), loss("sub-01", "right", "found_loss", 25.0),
        loss("sub-02", "left", "true_loss", 20.0), loss("sub-02", "left", "found_loss", 10.0),
        loss("sub-02", "right", "spared_loss", 1.0),
        loss("sub-02", "left", "found_loss", 99.0, case="fluid, both"),
    ]  # fmt: skip
    assert volumes_table.seen_losses(rows, "thinner, both", 0.2).tolist() == pytest.approx([19.0, 10.0])
    [goal] = [line for line in volumes_table.goals(rows, []) if "20 %" in line]
    assert "14.5 % (SD 6.4) | **missed** |" in goal


def test_rescans_differ_by_per_cent_of_their_mean() -> None:
    pair = zip(volumes_table.RESCANS[0], (3.0, 3.3), strict=True)
    rows = [volumes.row_of("labelled", f"oasis_labelled/{scan}", "csf_ml", ml) for scan, ml in pair]
    assert volumes_table.retest_pct(rows, "csf_ml") == pytest.approx([100.0 * 0.3 / 3.15])


def test_rows_survive_their_file(tmp_path) -> None:
    rows = [loss("sub-01", "left", "found_loss", 18.0), {**loss("sub-01", "left", "x", 1.0), "more": "y"}]
    volumes.write_rows(rows, tmp_path / "rows.csv")
    read = volumes_table.read_rows(tmp_path / "rows.csv")
    assert [one["measure"] for one in read] == ["found_loss", "x"]
    assert volumes_table.seen_losses([*read, loss("sub-01", "left", "true_loss", 20.0)], "thinner, both", 0.2)
    assert volumes_table.read_rows(tmp_path / "none.csv") == []
