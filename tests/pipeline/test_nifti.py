"""The only NIfTI reader and writer: reads whole or refuses, writes the same bytes every time."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib

import nibabel as nib
import numpy as np
import pytest

from brainstage.pipeline.errors import GeometryError, ImageError, InputMissingError, IntensityError
from brainstage.pipeline.nifti import read_mask, read_raw, read_volume, write_mask, write_volume
from brainstage.pipeline.source import MAX_FILE_BYTES
from brainstage.pipeline.volume import BrainMask, Volume

DATA = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def content(data=DATA, image_class=nib.Nifti1Image, endianness="<", **fields) -> bytes:
    """Return an uncompressed file, its header fields set to anything at all."""
    header = image_class.header_class(endianness=endianness)
    header.set_data_dtype(data.dtype)
    image = image_class(data, AFFINE, header=header)
    image.set_qform(AFFINE, 1)
    image.set_sform(AFFINE, 1)
    whole = bytearray(image.to_bytes())
    size = int(image.header["sizeof_hdr"])
    raw = np.frombuffer(whole[:size], dtype=image.header.structarr.dtype).copy()
    for name, value in fields.items():
        raw[name] = value
    whole[:size] = raw.tobytes()
    return bytes(whole)


def saved(tmp_path, whole: bytes, name="x.nii"):
    path = tmp_path / name
    path.write_bytes(whole)
    return path


@pytest.mark.parametrize("endianness", ["<", ">"], ids=["little", "big"])
@pytest.mark.parametrize("image_class", [nib.Nifti1Image, nib.Nifti2Image], ids=["nifti1", "nifti2"])
@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gzip"])
def test_both_versions_are_read_in_both_byte_orders(tmp_path, image_class, endianness, compressed):
    whole = content(DATA, image_class, endianness)
    path = saved(tmp_path, gzip.compress(whole), "x.nii.gz") if compressed else saved(tmp_path, whole)
    raw = read_raw(path)
    assert np.array_equal(raw.data, DATA)
    assert raw.sform == pytest.approx(AFFINE)
    assert raw.qform == pytest.approx(AFFINE)
    assert (raw.pixdim_mm, raw.warnings) == ((2.0, 2.0, 2.0), ())


@pytest.mark.parametrize(
    "dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"], ids=lambda dtype: dtype
)
def test_every_real_type_is_read_as_float32(tmp_path, dtype):
    data = read_raw(saved(tmp_path, content(DATA.astype(dtype)))).data
    assert data.dtype == np.float32
    assert np.array_equal(data, DATA)


@pytest.mark.parametrize("dtype", ["c8", [("R", "u1"), ("G", "u1"), ("B", "u1")]], ids=str)
def test_other_types_are_refused(tmp_path, dtype):
    with pytest.raises(ImageError, match="cannot be a T1w scan"):
        read_raw(saved(tmp_path, content(np.zeros((2, 2, 2), dtype))))


@pytest.mark.parametrize(
    ("code", "says"),
    [(77, "unknown data type, code 77"), (0, "cannot be"), (1, "cannot be"), (1536, "cannot be")],
    ids=["unknown", "none", "binary", "float128"],
)
def test_a_type_code_that_is_no_scan_is_refused(tmp_path, code, says):
    with pytest.raises(ImageError, match=says):
        read_raw(saved(tmp_path, content(datatype=code)))


@pytest.mark.parametrize(
    ("slope", "inter", "expected"),
    [(2.0, -3.0, 43.0), (0.0, 5.0, 23.0), (np.nan, 5.0, 23.0), (1.0, 0.0, 23.0), (0.5, 0.0, 11.5)],
)
def test_the_slope_of_the_header_is_applied(tmp_path, slope, inter, expected):
    raw = read_raw(saved(tmp_path, content(scl_slope=slope, scl_inter=inter)))
    assert raw.data[-1, -1, -1] == expected


def test_a_scaling_that_is_not_finite_is_refused(tmp_path):
    with pytest.raises(IntensityError, match="adds inf"):
        read_raw(saved(tmp_path, content(scl_slope=1.0, scl_inter=np.inf)))


def test_values_beyond_float32_are_left_for_the_caller_to_count(tmp_path):
    assert np.isinf(read_raw(saved(tmp_path, content(np.full((2, 2, 2), 1e300)))).data).all()


@pytest.mark.parametrize(("code", "factor"), [(0, 1.0), (1, 1000.0), (2, 1.0), (3, 0.001)])
def test_lengths_are_brought_to_millimetres(tmp_path, code, factor):
    raw = read_raw(saved(tmp_path, content(xyzt_units=code)))
    assert raw.pixdim_mm == pytest.approx([2.0 * factor] * 3)
    assert raw.sform[:3, :3] == pytest.approx(AFFINE[:3, :3] * factor)
    assert raw.qform[:3, :3] == pytest.approx(AFFINE[:3, :3] * factor)


def test_an_unknown_unit_is_refused(tmp_path):
    with pytest.raises(GeometryError, match="unknown unit of length, code 5"):
        read_raw(saved(tmp_path, content(xyzt_units=5)))


def test_a_unit_of_time_is_not_looked_at(tmp_path):
    assert read_raw(saved(tmp_path, content(xyzt_units=2 + 24))).pixdim_mm == (2.0, 2.0, 2.0)


@pytest.mark.parametrize(("codes", "sform", "qform"), [((0, 1), False, True), ((1, 0), True, False)])
def test_a_form_without_code_is_not_believed(tmp_path, codes, sform, qform):
    raw = read_raw(saved(tmp_path, content(sform_code=codes[0], qform_code=codes[1])))
    assert (raw.sform is not None, raw.qform is not None) == (sform, qform)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0], ids=["nan", "inf", "singular"])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_form_that_cannot_be_is_as_good_as_none(tmp_path, value):
    assert read_raw(saved(tmp_path, content(srow_y=[0.0, value, 0.0, 0.0]))).sform is None


def test_a_quaternion_that_cannot_be_is_as_good_as_none(tmp_path):
    assert read_raw(saved(tmp_path, content(quatern_b=3.0))).qform is None


def test_a_handedness_of_zero_counts_as_one(tmp_path):
    zeroed = np.array([0, 2, 2, 2, 1, 1, 1, 1], dtype=np.float32)
    raw = read_raw(saved(tmp_path, content(pixdim=zeroed, sform_code=0)))
    assert raw.qform == pytest.approx(AFFINE)


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
def test_several_gzip_members_are_one_stream(tmp_path, name):
    whole = content()
    path = saved(tmp_path, gzip.compress(whole[:300]) + gzip.compress(whole[300:]), name)
    assert np.array_equal(read_raw(path).data, DATA)


@pytest.mark.parametrize(
    ("tail", "says"),
    [(b"garbage after the stream", "gzip stream is truncated or damaged"), (b"\x1f\x8b\x08", "damaged")],
    ids=["garbage", "half_a_member"],
)
def test_garbage_after_the_gzip_stream_is_refused(tmp_path, tail, says):
    with pytest.raises(ImageError, match=says):
        read_raw(saved(tmp_path, gzip.compress(content()) + tail, "x.nii.gz"))


def test_padding_after_the_gzip_stream_is_harmless(tmp_path):
    path = saved(tmp_path, gzip.compress(content()) + bytes(512), "x.nii.gz")
    assert np.array_equal(read_raw(path).data, DATA)


def test_voxels_whose_place_is_not_said_begin_at_the_first_possible_byte(tmp_path):
    whole = bytearray(content())
    whole[108:112] = np.float32(0).tobytes()
    raw = read_raw(saved(tmp_path, bytes(whole), "x.nii"))
    assert np.array_equal(raw.data, DATA)
    assert [text.partition(":")[0] for text in raw.warnings] == ["voxel_offset_missing"]


def test_a_header_extension_is_skipped(tmp_path):
    image = nib.Nifti1Image(DATA, AFFINE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"patient name" * 50))
    nib.save(image, tmp_path / "x.nii")
    assert np.array_equal(read_raw(tmp_path / "x.nii").data, DATA)


@pytest.mark.parametrize(
    ("fields", "error", "says"),
    [
        ({"dim": [0, 2, 3, 4, 1, 1, 1, 1]}, GeometryError, "0 dimensions"),
        ({"dim": [9, 2, 3, 4, 1, 1, 1, 1]}, GeometryError, "dimensions; a T1w scan has 3"),
        ({"dim": [2, 6, 4, 1, 1, 1, 1, 1]}, GeometryError, "2 dimensions"),
        ({"dim": [3, 2, -3, 4, 1, 1, 1, 1]}, GeometryError, "each must be at least 1"),
        ({"dim": [3, 2, 0, 4, 1, 1, 1, 1]}, GeometryError, "each must be at least 1"),
        ({"dim": [3, 30000, 30000, 30000, 1, 1, 1, 1]}, GeometryError, "at most 1024 an axis"),
        ({"dim": [3, 1024, 1024, 1024, 1, 1, 1, 1]}, GeometryError, "134217728 voxels"),
        ({"dim": [3, 3, 3, 4, 1, 1, 1, 1]}, ImageError, "truncated: "),
        ({"dim": [4, 2, 3, 2, 2, 1, 1, 1]}, GeometryError, "holds 2 volumes"),
        ({"pixdim": [1, 2, 0, 2, 1, 1, 1, 1]}, GeometryError, "each must be above 0"),
        ({"pixdim": [1, 2, np.nan, 2, 1, 1, 1, 1]}, GeometryError, "each must be above 0"),
        ({"vox_offset": np.nan}, ImageError, "voxels begin at byte nan"),
        ({"vox_offset": -5}, ImageError, "voxels begin at byte -5"),
        ({"vox_offset": 348}, ImageError, "voxels begin at byte 348; the first possible one is 352"),
        ({"vox_offset": 5}, ImageError, "voxels begin at byte 5"),
        ({"vox_offset": 2e9}, ImageError, "voxels begin at byte"),
        ({"vox_offset": 9e8}, ImageError, "truncated"),
        ({"magic": b"ni1"}, ImageError, "no single-file NIfTI"),
        ({"magic": b""}, ImageError, "no single-file NIfTI"),
        ({"sizeof_hdr": 0}, ImageError, "no NIfTI file"),
    ],
)
def test_a_header_that_cannot_be_is_refused(tmp_path, fields, error, says):
    with pytest.raises(error, match=says):
        read_raw(saved(tmp_path, content(**fields)))


@pytest.mark.parametrize(
    ("whole", "says"),
    [
        (b"", "is empty: a failed download"),
        (b"short", "no NIfTI file"),
        (b"<!DOCTYPE html><html>" + b" " * 400, "web page"),
        (b"../../.git/annex/objects/" + b"x" * 400, "git-annex pointer"),
        (b'{"message": "not found"}' + b" " * 400, "web page"),
        (content()[:340], "no NIfTI file"),
        (content(DATA, nib.Nifti2Image)[:500], "ends within its header"),
        (b"\x1f\x8b", "truncated or damaged"),
        (gzip.compress(b"not an image"), "no NIfTI file"),
    ],
    ids=["empty", "short", "html", "annex", "json", "cut", "cut_nifti2", "gzip_magic", "gzip_text"],
)
def test_what_is_no_nifti_is_refused_plainly(tmp_path, whole, says):
    with pytest.raises(ImageError, match=says):
        read_raw(saved(tmp_path, whole))


def test_a_file_that_is_not_there_is_missing(tmp_path):
    with pytest.raises(InputMissingError, match="git-annex"):
        read_raw(tmp_path / "x.nii")


def test_a_directory_is_no_image(tmp_path):
    (tmp_path / "x.nii").mkdir()
    with pytest.raises(ImageError, match="no regular file"):
        read_raw(tmp_path / "x.nii")


def test_a_file_of_many_gigabytes_is_not_opened(tmp_path):
    path = tmp_path / "x.nii"
    with path.open("wb") as stream:
        stream.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(ImageError, match="at most 2147483648 are read"):
        read_raw(path)


@pytest.mark.parametrize("offset", [352, 5e8], ids=["after_the_voxels", "before_the_voxels"])
def test_a_gzip_bomb_is_stopped_before_it_expands(tmp_path, offset):
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = packer.compress(content(vox_offset=offset))
    packed += b"".join(packer.compress(bytes(2**20)) for _ in range(256)) + packer.flush()
    path = saved(tmp_path, packed, "bomb.nii.gz")
    assert path.stat().st_size < 300_000
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match=r"far more data|truncated"):
            read_raw(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 32 * 2**20


@pytest.mark.parametrize("surplus", [100, 3 * 2**20], ids=["a_little", "far_more"])
def test_a_little_surplus_is_tolerated_and_much_is_not(tmp_path, surplus):
    path = saved(tmp_path, content() + bytes(surplus))
    if surplus < 2**20:
        assert np.array_equal(read_raw(path).data, DATA)
    else:
        with pytest.raises(ImageError, match="far more data"):
            read_raw(path)


def test_a_written_volume_reads_back_the_same(tmp_path, phantom):
    back = read_volume(write_volume(tmp_path / "a" / "x_T1w.nii.gz", phantom))
    assert np.array_equal(back.data, phantom.data)
    assert back.grid.matches(phantom.grid)


def test_a_written_mask_reads_back_the_same(tmp_path, phantom):
    brain_mask = BrainMask(data=phantom.data > 0, voxel_to_ras=phantom.voxel_to_ras)
    path = write_mask(tmp_path / "x_mask.nii.gz", brain_mask)
    back = read_mask(path)
    assert np.array_equal(back.data, brain_mask.data)
    assert back.grid.matches(brain_mask.grid)
    assert nib.load(path).get_data_dtype() == np.uint8


@pytest.mark.parametrize(
    ("name", "code"),
    [("sub-01_desc-preproc_T1w.nii.gz", 1), ("sub-01_space-MNI152NLin2009aSym_res-1_T1w.nii.gz", 4)],
    ids=["native", "template"],
)
def test_a_written_header_has_both_forms_and_no_free_text(tmp_path, phantom, name, code):
    header = nib.load(write_volume(tmp_path / name, phantom)).header
    assert header["sform_code"] == header["qform_code"] == code
    assert header.get_sform() == pytest.approx(header.get_qform(), abs=1e-4)
    assert header.get_sform() == pytest.approx(phantom.voxel_to_ras, abs=1e-4)
    for field in ("descrip", "aux_file", "intent_name", "db_name", "data_type"):
        assert bytes(header[field]).strip(b"\x00") == b"", field
    assert len(header.extensions) == 0
    assert header.get_xyzt_units()[0] == "mm"
    assert header.get_data_dtype() == np.float32


def test_the_same_voxels_give_the_same_bytes(tmp_path, make_phantom):
    first = write_volume(tmp_path / "a.nii.gz", make_phantom()).read_bytes()
    assert write_volume(tmp_path / "b.nii.gz", make_phantom()).read_bytes() == first


def test_a_file_of_another_program_is_not_taken_for_ours(tmp_path):
    path = saved(tmp_path, content(sform_code=0))
    with pytest.raises(GeometryError, match="not written by this program"):
        read_volume(path)


def test_a_volume_of_one_voxel_is_a_volume(tmp_path):
    volume = Volume(data=np.ones((1, 1, 1)), voxel_to_ras=AFFINE)
    assert read_volume(write_volume(tmp_path / "x.nii.gz", volume)).shape == (1, 1, 1)
