"""Whatever a file holds: an ``ImageError`` with one sentence, or a finite volume; never another exception."""

from __future__ import annotations

import gzip
import warnings
from functools import cache

import nibabel as nib
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brainstage.pipeline.config import IngestConfig
from brainstage.pipeline.errors import ImageError
from brainstage.pipeline.nifti import read_raw
from brainstage.preprocessing.ingest import ingest

FIELDS = {
    name: (np.dtype(found[0]), found[1]) for name, found in nib.Nifti1Header.template_dtype.fields.items()
}
FIELDS_THAT_MATTER = [
    *(
        "sizeof_hdr",
        "dim",
        "datatype",
        "bitpix",
        "pixdim",
        "vox_offset",
        "scl_slope",
        "scl_inter",
        "xyzt_units",
    ),
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x"),
    *("srow_x", "srow_y", "srow_z", "magic"),
]
EXTREMES = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    2.0,
    3.0,
    16.0,
    100.0,
    1e-30,
    1e-6,
    1e6,
    1e30,
    3e38,
    np.nan,
    np.inf,
    -np.inf,
]


@cache
def small_head() -> bytes:
    """Return a plain NIfTI-1 file of 16 x 16 x 16 voxels of 6 mm that is ingested without a warning."""
    matrix = np.diag([6.0, 6.0, 6.0, 1.0])
    data = np.random.default_rng(0).integers(0, 500, (16, 16, 16)).astype(np.float32)
    image = nib.Nifti1Image(data, matrix)
    image.set_sform(matrix, 1)
    image.set_qform(matrix, 1)
    return image.to_bytes()


def outcome_of(path, whole: bytes) -> str:
    """Ingest the bytes; return the sentence, or nothing where a finite head came out."""
    path.write_bytes(whole)
    permissive = IngestConfig(
        on_conflict="sform", missing_orientation="assume", field_of_view_bounds_mm=(1.0, 1000.0)
    )
    sentence = ""
    for config in (IngestConfig(), permissive):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            try:
                head = ingest(path, config).head
            except ImageError as error:
                sentence = error.message
                assert len(sentence) > 15, "a refusal says why"
                continue
        assert np.isfinite(head.data).all()
        assert head.data.min() < head.data.max()
        assert head.axcodes == "RAS"
    return sentence


@st.composite
def altered_headers(draw):
    """Return the small head with up to four header fields overwritten by extremes or by noise."""
    whole = bytearray(small_head())
    for _ in range(draw(st.integers(1, 4))):
        dtype, offset = FIELDS[draw(st.sampled_from(FIELDS_THAT_MATTER))]
        element = dtype.base
        place = offset + element.itemsize * draw(st.integers(0, dtype.itemsize // element.itemsize - 1))
        if element.kind == "f" and draw(st.booleans()):
            value = np.array(draw(st.sampled_from(EXTREMES)), element).tobytes()
        elif element.kind in "iu" and draw(st.booleans()):
            value = np.array(draw(st.sampled_from([0, 1, 2, 3, 4, 8, 16, 64, 127])), element).tobytes()
        else:
            value = draw(st.binary(min_size=element.itemsize, max_size=element.itemsize))
        whole[place : place + element.itemsize] = value
    return bytes(whole)


def test_the_small_head_is_good_to_begin_with(tmp_path):
    assert outcome_of(tmp_path / "x.nii", small_head()) == ""


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(whole=altered_headers(), compressed=st.booleans())
def test_no_header_gets_past_the_sanitiser(whole, compressed, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "altered.nii.gz"
    outcome_of(path, gzip.compress(whole, 1) if compressed else whole)


@settings(max_examples=100)
@given(place=st.integers(0, 347), value=st.integers(0, 255), length=st.integers(1, 8))
def test_no_stray_bytes_in_the_header_get_past(place, value, length, tmp_path_factory):
    whole = bytearray(small_head())
    whole[place : place + length] = bytes([value]) * min(length, 348 - place)
    outcome_of(tmp_path_factory.getbasetemp() / "stray.nii", bytes(whole))


@settings(max_examples=150)
@given(data=st.data())
def test_a_damaged_gzip_stream_is_never_read_as_if_it_were_whole(data, tmp_path_factory):
    packed = gzip.compress(small_head(), 6, mtime=0)
    place = data.draw(st.integers(0, len(packed) - 1))
    flipped = bytes([packed[place] ^ data.draw(st.integers(1, 255))])
    damaged = data.draw(
        st.sampled_from(
            [packed[:place], packed[:place] + flipped + packed[place + 1 :], packed + packed[:place]]
        )
    )
    path = tmp_path_factory.getbasetemp() / "damaged.nii.gz"
    path.write_bytes(damaged)
    whole = np.frombuffer(small_head()[352:], np.float32)
    try:
        read = read_raw(path).data
    except ImageError as error:
        assert error.message  # noqa: PT017 - the law is about both outcomes
    else:
        assert np.array_equal(read.ravel(order="F"), whole), "other voxels under a good checksum"


@settings(max_examples=150)
@given(noise=st.binary(max_size=2000), keep=st.integers(0, 352))
def test_no_noise_is_an_image(noise, keep, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "noise.nii"
    assert outcome_of(path, small_head()[:keep] + noise) != ""
