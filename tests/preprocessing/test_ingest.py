"""The sanitiser: every known fault of a file is refused with its sentence, or mended and reported."""

from __future__ import annotations

import gzip

import nibabel as nib
import numpy as np
import pytest

from brainstage.pipeline.config import IngestConfig
from brainstage.pipeline.errors import GeometryError, ImageError, InputMissingError, IntensityError
from brainstage.pipeline.volume import Volume
from brainstage.preprocessing import ingest as module
from brainstage.preprocessing.ingest import ingest, to_ras

DEFAULT = IngestConfig()
FLIPPED = np.diag([-1.0, 1.0, 1.0, 1.0])


@pytest.fixture
def head(make_phantom):
    return make_phantom()


@pytest.fixture
def saved_head(tmp_path, save_nifti, head):
    """Return a writer of the phantom as int16, with any array, matrix or header field in place of its own."""

    def save(name="sub-01_T1w.nii.gz", data=None, voxel_to_ras=None, **options):
        values = head.data.astype(np.int16) if data is None else data
        matrix = head.voxel_to_ras if voxel_to_ras is None else voxel_to_ras
        return save_nifti(tmp_path / name, values, matrix, **options)

    return save


def altered(path, change):
    """Rewrite a file's bytes; return its path."""
    path.write_bytes(change(path.read_bytes()))
    return path


def with_field(whole: bytes, **fields) -> bytes:
    """Set header fields of an uncompressed NIfTI-1 file to anything at all."""
    header = np.frombuffer(whole[:348], dtype=nib.Nifti1Header().structarr.dtype).copy()
    for name, value in fields.items():
        header[name] = value
    return header.tobytes() + whole[348:]


def flip_byte(whole: bytes) -> bytes:
    middle = len(whole) // 2
    return whole[:middle] + bytes([whole[middle] ^ 0xFF]) + whole[middle + 1 :]


def with_values(head: Volume, count: int, value: float) -> np.ndarray:
    data = head.data.copy()
    data.flat[:count] = value
    return data


DIM_HUGE = [3, 30000, 30000, 30000, 1, 1, 1, 1]
DIM_NEGATIVE = [3, 24, -28, 26, 1, 1, 1, 1]
PIXDIM_ZERO = [1, 4, 0, 3.6, 0, 0, 0, 0]

BYTES = {
    "01_half_of_the_gzip_stream": ("x.nii.gz", lambda b: b[: len(b) // 2], ImageError, "truncated"),
    "02_one_byte_flipped": ("x.nii.gz", flip_byte, ImageError, "truncated or damaged"),
    "02_checksum_flipped": ("x.nii.gz", lambda b: b[:-6] + b"\0\0" + b[-4:], ImageError, "CRC check failed"),
    "03_half_of_a_plain_file": ("x.nii", lambda b: b[: len(b) // 2], ImageError, "the file is truncated"),
    "05_empty_file": ("x.nii.gz", lambda _: b"", ImageError, "is empty: a failed download"),
    "05_web_page": ("x.nii.gz", lambda _: b"<html>" * 99, ImageError, "looks like a web page"),
    "06_huge_dimensions": ("x.nii", lambda b: with_field(b, dim=DIM_HUGE), GeometryError, "at most 1024"),
    "07_gzip_bomb": (
        "x.nii.gz",
        lambda b: gzip.compress(gzip.decompress(b) + bytes(2**23)),
        ImageError,
        "far more data than its header says",
    ),
    "08_negative_dimension": (
        "x.nii",
        lambda b: with_field(b, dim=DIM_NEGATIVE),
        GeometryError,
        "each must be at least 1",
    ),
    "09_zero_voxel_size": ("x.nii", lambda b: with_field(b, pixdim=PIXDIM_ZERO), GeometryError, "above 0"),
    "10_metres_for_millimetres": (
        "x.nii",
        lambda b: with_field(b, xyzt_units=1),
        GeometryError,
        "4e\\+03 x .* mm; expected 0.2 to 6",
    ),
    "10_microns_for_millimetres": (
        "x.nii",
        lambda b: with_field(b, xyzt_units=3),
        GeometryError,
        "voxels measure 0.004 x",
    ),
    "11_left_and_right_disagree": (
        "x.nii",
        lambda b: with_field(b, srow_x=[-4, 0, 0, 50]),
        GeometryError,
        r"sform \(LAS\) and qform \(RAS\) .* disagree about sides",
    ),
    "12_no_orientation": (
        "x.nii",
        lambda b: with_field(b, sform_code=0, qform_code=0),
        GeometryError,
        "neither sform nor qform is set",
    ),
}


@pytest.mark.parametrize("name", BYTES)
def test_a_faulty_file_is_refused_with_its_sentence(saved_head, name):
    file_name, change, error, says = BYTES[name]
    path = altered(saved_head(file_name), change)
    with pytest.raises(error, match=says):
        ingest(path, DEFAULT)


VALUES = {
    "14_many_nan": (
        lambda h: with_values(h, h.data.size // 50, np.nan),
        IntensityError,
        "NaN or infinite; at",
    ),
    "15_many_infinite": (lambda h: with_values(h, h.data.size // 50, np.inf), IntensityError, "NaN or inf"),
    "16_all_zero": (lambda h: np.zeros(h.shape, np.int16), IntensityError, "every voxel holds 0"),
    "17_constant": (lambda h: np.full(h.shape, 7, np.int16), IntensityError, "every voxel holds 7"),
    "17_almost_empty": (
        lambda h: with_values(h.with_data(h.data * 0), 99, 5.0),
        IntensityError,
        "almost empty",
    ),
    "17_nothing_above_zero": (lambda h: -h.data, IntensityError, "a bright head on a dark ground"),
    "18_two_dimensions": (lambda h: h.data[:, :, 0], GeometryError, "2 dimensions"),
    "18_single_slice": (lambda h: h.data[:, :, 13:14], GeometryError, "24 x 28 x 1 voxels; at least 16"),
    "18_thin_slab": (lambda h: h.data[:, :, :18], GeometryError, "field of view is 96 x 98 x 65 mm"),
    "19_three_volumes": (lambda h: np.stack([h.data] * 3, axis=3), GeometryError, "holds 3 volumes"),
    "19_components": (lambda h: np.stack([h.data] * 3, axis=3)[:, :, :, None], GeometryError, "3 volumes"),
    "complex": (lambda h: h.data.astype(np.complex64), ImageError, "complex64 cannot be a T1w scan"),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_that_no_scan_has_are_refused_with_their_sentence(saved_head, head, name):
    make, error, says = VALUES[name]
    with pytest.raises(error, match=says):
        ingest(saved_head(data=make(head)), DEFAULT)


def test_a_scan_that_is_not_there_is_missing(tmp_path):
    with pytest.raises(InputMissingError, match="cannot be read"):
        ingest(tmp_path / "x.nii.gz", DEFAULT)


@pytest.mark.parametrize(
    ("name", "change"),
    [("x.nii.gz", gzip.decompress), ("x.nii", gzip.compress)],
    ids=["plain_named_gz", "gzip_named_plain"],
)
def test_a_wrong_ending_is_accepted_and_reported(saved_head, head, name, change):
    result = ingest(altered(saved_head(name), change), DEFAULT)
    assert result.findings.warning_codes == ("extension_mismatch",)
    assert np.array_equal(result.head.data, head.data.astype(np.int16))


@pytest.mark.parametrize(("code", "factor"), [(1, 1e-3), (3, 1e3)], ids=["metres", "microns"])
def test_another_unit_is_converted(saved_head, head, code, factor):
    matrix = head.voxel_to_ras.copy()
    matrix[:3] *= factor
    result = ingest(saved_head(voxel_to_ras=matrix, fields={"xyzt_units": code}), DEFAULT)
    assert result.head.grid.matches(head.grid)
    assert result.findings.warnings == ()


def test_a_good_scan_has_no_warning(saved_head, head):
    result = ingest(saved_head(), DEFAULT)
    assert result.findings.warnings == ()
    assert (result.findings.shape, result.findings.axcodes) == (head.shape, "RAS")
    assert result.findings.affine_source == "sform"
    assert result.findings.spacing_mm == pytest.approx(head.spacing_mm)


@pytest.mark.parametrize("name", ["RAS", "LAS", "LPS", "oblique", "AIL"])
def test_every_orientation_becomes_ras_and_no_voxel_moves(save_nifti, tmp_path, make_phantom, name):
    stored = make_phantom(name)
    path = save_nifti(tmp_path / "x.nii.gz", stored.data, stored.voxel_to_ras)
    result = ingest(path, DEFAULT)
    assert result.head.axcodes == "RAS"
    assert result.findings.axcodes == stored.axcodes
    index = np.stack(np.meshgrid(*[np.arange(n) for n in result.head.shape], indexing="ij"), axis=-1)
    ras_mm = index @ result.head.voxel_to_ras[:3, :3].T + result.head.voxel_to_ras[:3, 3]
    back = np.linalg.inv(stored.voxel_to_ras)
    there = np.rint(ras_mm @ back[:3, :3].T + back[:3, 3]).astype(int)
    assert np.array_equal(result.head.data, stored.data[tuple(np.moveaxis(there, -1, 0))])
    assert np.abs(there @ stored.voxel_to_ras[:3, :3].T + stored.voxel_to_ras[:3, 3] - ras_mm).max() < 1e-3


def test_turning_to_ras_twice_changes_nothing(make_phantom, orientation):
    once = to_ras(make_phantom(orientation))
    twice = to_ras(once)
    assert np.array_equal(once.data, twice.data)
    assert once.grid.matches(twice.grid)


@pytest.mark.parametrize(("choice", "axcodes"), [("sform", "RAS"), ("qform", "LAS")])
def test_the_configuration_settles_a_conflict_of_sides(saved_head, head, choice, axcodes):
    path = saved_head(qform=(FLIPPED @ head.voxel_to_ras, 1))
    result = ingest(path, IngestConfig(on_conflict=choice))
    assert result.findings.axcodes == axcodes
    assert result.findings.affine_source == choice
    assert result.findings.warning_codes == ("form_conflict",)
    assert f"the {choice} was believed" in result.findings.warnings[0]


def test_axes_in_another_order_are_a_conflict_too(saved_head, head):
    swapped = head.voxel_to_ras[:, [1, 0, 2, 3]]
    with pytest.raises(GeometryError, match=r"sform \(RAS\) and qform \(ARS\).*sides or axes"):
        ingest(saved_head(qform=(swapped, 1)), DEFAULT)


@pytest.mark.parametrize(
    ("shift_mm", "warnings"), [(0.05, ()), (3.0, ("form_conflict",))], ids=["rounding", "moved"]
)
def test_a_shift_between_the_forms_is_reported_not_refused(saved_head, head, shift_mm, warnings):
    moved = head.voxel_to_ras.copy()
    moved[2, 3] += shift_mm
    result = ingest(saved_head(qform=(moved, 1)), DEFAULT)
    assert result.findings.warning_codes == warnings
    assert result.head.voxel_to_ras == pytest.approx(head.voxel_to_ras, abs=1e-4), "the sform is believed"


@pytest.mark.parametrize(("codes", "source"), [((1, 0), "sform"), ((0, 1), "qform")])
def test_the_form_that_is_set_is_believed(saved_head, head, codes, source):
    wrong = FLIPPED @ head.voxel_to_ras
    path = saved_head(
        "x.nii",
        sform=(head.voxel_to_ras if codes[0] else wrong, 1),
        qform=(head.voxel_to_ras if codes[1] else wrong, 1),
    )
    altered(path, lambda whole: with_field(whole, sform_code=codes[0], qform_code=codes[1]))
    result = ingest(path, DEFAULT)
    assert result.findings.affine_source == source
    assert result.head.grid.matches(head.grid)


def test_an_unset_orientation_can_be_assumed_and_is_reported(saved_head):
    path = altered(saved_head("x.nii"), lambda whole: with_field(whole, sform_code=0, qform_code=0))
    result = ingest(path, IngestConfig(missing_orientation="assume"))
    assert result.findings.affine_source == "assumed"
    assert result.findings.warning_codes == ("orientation_assumed",)
    assert result.head.axcodes == "RAS"


def test_a_voxel_size_beside_the_matrix_is_reported(saved_head, head):
    wrong = head.voxel_to_ras @ np.diag([0.9, 1, 1, 1])
    path = saved_head("x.nii", qform=(wrong, 1))
    altered(path, lambda whole: with_field(whole, qform_code=0))
    result = ingest(path, DEFAULT)
    assert result.findings.warning_codes == ("pixdim_mismatch",)
    assert result.head.spacing_mm == pytest.approx(head.spacing_mm)


SHEAR = np.eye(4)
SHEAR[0, 1] = 0.2


def test_a_sheared_head_is_resampled_to_right_angles_where_it_was(save_nifti, tmp_path, orientation):
    from_ras = {"RAS": np.eye(3), "LAS": FLIPPED[:3, :3], "LPS": np.diag([-1.0, -1.0, 1.0])}
    turn = np.eye(4)
    turn[:3, :3] = from_ras.get(orientation, nib.eulerangles.euler2mat(0.2, -0.1, 0.15))
    matrix = SHEAR @ turn @ np.diag([3.0, 3.0, 3.0, 1.0])
    shape = (40, 42, 44)
    matrix[:3, 3] = -matrix[:3, :3] @ ((np.array(shape) - 1) / 2)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
    ras_mm = index @ matrix[:3, :3].T + matrix[:3, 3]

    def intensity(where_mm):
        return 500.0 + where_mm @ np.array([2.0, 1.0, -1.5])

    path = save_nifti(
        tmp_path / "x.nii.gz", intensity(ras_mm).astype(np.float32), matrix, fields={"qform_code": 0}
    )
    result = ingest(path, DEFAULT)
    axes = result.head.voxel_to_ras[:3, :3] / result.head.spacing_mm
    assert axes.T @ axes == pytest.approx(np.eye(3), abs=1e-9)
    assert "sheared" in result.findings.warning_codes
    assert result.head.axcodes == "RAS"
    index = np.stack(np.meshgrid(*[np.arange(n) for n in result.head.shape], indexing="ij"), axis=-1)
    here_mm = index @ result.head.voxel_to_ras[:3, :3].T + result.head.voxel_to_ras[:3, 3]
    near = np.linalg.norm(here_mm, axis=-1) < 40
    assert near.sum() > 5000
    assert np.abs(result.head.data - intensity(here_mm))[near].max() < 0.5


def test_a_shear_that_needs_a_giant_grid_is_refused(saved_head, head, monkeypatch):
    matrix = head.voxel_to_ras.copy()
    matrix[:3, 1] = matrix[:3, 0] + 0.3 * matrix[:3, 1]
    monkeypatch.setattr(module, "MAX_VOXELS", 30_000)
    with pytest.raises(GeometryError, match="degrees off a right angle; to straighten"):
        ingest(saved_head(sform=(matrix, 1), qform=(matrix, 0)), DEFAULT)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
def test_a_few_values_that_are_not_finite_become_zero_and_are_counted(saved_head, head, value):
    result = ingest(saved_head(data=with_values(head, 9, value)), DEFAULT)
    assert result.findings.warnings == ("nonfinite_values: 9 voxels were NaN or infinite and were set to 0",)
    assert np.count_nonzero(result.head.data) == np.count_nonzero(head.data.flat[9:])


def test_negative_values_are_kept_and_reported(saved_head, head):
    result = ingest(saved_head(data=with_values(head, 9, -5.0)), DEFAULT)
    assert result.findings.warning_codes == ("negative_values",)
    assert result.head.data.min() == -5.0


@pytest.mark.parametrize("factor", [1e-7, 1e12], ids=["tiny", "huge"])
def test_intensities_out_of_range_are_rescaled_and_reported(saved_head, head, factor):
    result = ingest(saved_head(data=head.data * np.float32(factor)), DEFAULT)
    assert result.findings.warning_codes == ("intensity_rescaled",)
    assert np.percentile(result.head.data, 99.9) == pytest.approx(1000.0, rel=1e-3)
    assert result.head.data == pytest.approx(head.data * (1000.0 / np.percentile(head.data, 99.9)), rel=1e-4)


@pytest.mark.filterwarnings("ignore:overflow")
def test_intensities_at_the_edge_of_float32_do_not_become_an_empty_head(saved_head, head):
    data = np.where(head.data > 300, 3e38, np.where(head.data > 0, 1e38, -3e38)).astype(np.float32)
    result = ingest(saved_head(data=data), DEFAULT)
    assert result.head.data.max() > result.head.data.min()


def test_a_single_volume_in_four_dimensions_is_squeezed_and_reported(saved_head, head):
    result = ingest(saved_head(data=head.data[..., None]), DEFAULT)
    assert result.findings.warnings == (
        "extra_dimension: dimensions [24, 28, 26, 1] were read as [24, 28, 26]",
    )
    assert result.head.shape == head.shape


def test_bounds_come_from_the_configuration(saved_head):
    with pytest.raises(GeometryError, match=r"expected 1 to 3 mm an axis \(ingest\.spacing_bounds_mm\)"):
        ingest(saved_head(), IngestConfig(spacing_bounds_mm=(1.0, 3.0)))
    with pytest.raises(GeometryError, match=r"expected 100 to 300 mm an axis"):
        ingest(saved_head(), IngestConfig(field_of_view_bounds_mm=(100.0, 300.0)))


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "axcodes", "warning"),
    [
        ("orientation_AIL", "AIL", None),
        ("avg152_radiological", "RAS", None),
        ("sheared_affine", None, "sheared"),
        ("oblique_head_uint8", None, None),
        ("head_2mm", None, None),
    ],
)
def test_real_oddities_become_ras(shared_data, name, axcodes, warning):
    result = ingest(shared_data / "oddities" / f"{name}.nii.gz", DEFAULT)
    assert result.head.axcodes == "RAS"
    assert axcodes in (None, result.findings.axcodes)
    assert (warning in result.findings.warning_codes) is (warning is not None)
