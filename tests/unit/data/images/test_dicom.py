"""DICOM single frames are read as shown by a viewer, without the text around the image."""

import contextlib
import io
import sys
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from pydicom import Dataset, Sequence
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.utils import pack_bits
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    RLELossless,
    UltrasoundImageStorage,
)

from mtil.data.images import dicom
from mtil.data.images.read import read_gray, read_mask
from mtil.errors import DataError

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (24, 36), dtype=np.uint8)
Pixels = npt.NDArray[np.generic]


def header(pixels: Pixels, photometric: str = "MONOCHROME2", bits: int = 0) -> Dataset:
    """Return the header of an ultrasound image with pixels (h, w) or (h, w, 3)."""
    ds = Dataset()
    ds.SOPClassUID = UltrasoundImageStorage
    ds.SOPInstanceUID = "1.2.3"
    ds.Modality = "US"
    ds.Rows, ds.Columns = pixels.shape[:2]
    ds.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    if pixels.ndim == 3:
        ds.PlanarConfiguration = 0
    ds.PhotometricInterpretation = photometric
    ds.BitsAllocated = 8 * pixels.dtype.itemsize
    ds.BitsStored = bits or ds.BitsAllocated
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    ds.PixelData = pixels.tobytes()
    ds["PixelData"].VR = "OB" if ds.BitsAllocated == 8 else "OW"
    return ds


def file(ds: Dataset, syntax: UID = ExplicitVRLittleEndian) -> bytes:
    """Return the bytes of a DICOM file."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = UltrasoundImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    sink = io.BytesIO()
    whole = FileDataset(
        sink,
        ds,
        file_meta=meta,
        preamble=b"\0" * 128,
        is_implicit_VR=syntax.is_implicit_VR,
        is_little_endian=syntax.is_little_endian,
    )
    whole.save_as(sink, enforce_file_format=True)
    return sink.getvalue()


def region(box: tuple[int, int, int, int], data_type: int = 1, spatial: int = 1) -> Dataset:
    """Return an ultrasound region. `box` is (x0, y0, x1, y1); both corners are inclusive."""
    item = Dataset()
    item.RegionSpatialFormat, item.RegionDataType, item.RegionFlags = spatial, data_type, 0
    item.RegionLocationMinX0, item.RegionLocationMinY0 = box[:2]
    item.RegionLocationMaxX1, item.RegionLocationMaxY1 = box[2:]
    item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = 3
    item.PhysicalDeltaX = item.PhysicalDeltaY = 0.008
    return item


def gray_of(ds: Dataset, syntax: UID = ExplicitVRLittleEndian) -> npt.NDArray[np.uint8]:
    return read_gray(file(ds, syntax), "scan.png")  # the suffix has no effect


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_gray_pixels_are_read_as_they_are(syntax: UID) -> None:
    np.testing.assert_array_equal(gray_of(header(GRAY), syntax), GRAY)


def test_only_the_magic_makes_a_file_dicom() -> None:
    data = file(header(GRAY))
    assert data[128:132] == b"DICM"
    assert dicom.is_dicom(data)
    assert not dicom.is_dicom(data[1:])
    assert not dicom.is_dicom(b"DICM")
    with pytest.raises(DataError, match=r"notes\.dcm cannot be read: it is none of"):
        read_gray(b"no image at all" * 20, "notes.dcm")


def test_monochrome1_is_inverted() -> None:
    np.testing.assert_array_equal(gray_of(header(GRAY, "MONOCHROME1")), 255 - GRAY)


@pytest.mark.parametrize(("bits", "most"), [(16, 65535), (12, 4095), (10, 1023)])
def test_more_bits_are_scaled_by_how_many_are_stored(bits: int, most: int) -> None:
    values = np.array([[0, most // 4, most // 2, most]], np.uint16)
    assert gray_of(header(values, bits=bits)).tolist() == [[0, 64, 127, 255]]


def test_signed_pixels_start_below_zero() -> None:
    values = np.array([[-2048, 0, 2047]], np.int16)
    assert gray_of(header(values, bits=12)).tolist() == [[0, 128, 255]]


def test_a_window_is_spread_over_all_grays() -> None:
    ds = header(np.array([[0, 1000, 1500, 2000, 4095]], np.uint16), bits=12)
    ds.WindowCenter, ds.WindowWidth, ds.VOILUTFunction = 1500, 1000, "LINEAR_EXACT"
    assert gray_of(ds).tolist() == [[0, 0, 128, 255, 255]]


def test_a_window_of_all_eight_bits_changes_nothing() -> None:
    ds = header(GRAY)
    ds.WindowCenter, ds.WindowWidth = 128, 256
    np.testing.assert_array_equal(gray_of(ds), GRAY)


def test_a_window_without_a_width_is_passed_over() -> None:
    ds = header(GRAY)
    ds.WindowCenter = 10
    np.testing.assert_array_equal(gray_of(ds), GRAY)


@pytest.mark.parametrize("slope", [1, 2])
def test_the_rescale_slope_comes_before_the_window(slope: int) -> None:
    ds = header(np.array([[0, 100, 200]], np.uint8))
    ds.RescaleSlope, ds.RescaleIntercept = slope, -50
    assert gray_of(ds).tolist() == [[0, 100, 200]]  # without a window, the full range
    ds.WindowCenter, ds.WindowWidth = 100 * slope - 50, 200 * slope
    ds.VOILUTFunction = "LINEAR_EXACT"
    assert gray_of(ds).tolist() == [[0, 128, 255]]


def test_a_negative_slope_makes_large_values_dark() -> None:
    ds = header(np.array([[0, 100, 255]], np.uint8))
    ds.RescaleSlope, ds.RescaleIntercept = -1, 255
    assert gray_of(ds).tolist() == [[255, 155, 0]]
    ds.WindowCenter, ds.WindowWidth, ds.VOILUTFunction = 127.5, 255, "LINEAR_EXACT"
    assert gray_of(ds).tolist() == [[255, 155, 0]]


def test_a_slope_of_zero_is_refused() -> None:
    ds = header(GRAY)
    ds.RescaleSlope, ds.RescaleIntercept = 0, 7
    with pytest.raises(DataError, match=r"scan\.png cannot be read: its rescale slope is 0"):
        gray_of(ds)


@pytest.mark.parametrize("name", ["ModalityLUTSequence", "VOILUTSequence"])
def test_lookup_tables_are_applied(name: str) -> None:
    ds = header(np.array([[0, 1, 2, 3]], np.uint8))
    table = Dataset()
    table.LUTDescriptor = [4, 0, 16]
    table["LUTDescriptor"].VR = "US"
    table.LUTData = [65535, 0, 257 * 100, 257 * 7]
    table["LUTData"].VR = "US"
    if name == "ModalityLUTSequence":
        table.ModalityLUTType = "US"
    setattr(ds, name, Sequence([table]))
    assert gray_of(ds).tolist() == [[255, 0, 100, 7]]


def test_a_rescaled_image_with_a_table_is_read() -> None:
    ds = header(np.array([[0, 1, 2, 3]], np.uint8))
    ds.RescaleSlope, ds.RescaleIntercept = 1, 0
    table = Dataset()
    table.LUTDescriptor = [4, 0, 8]
    table["LUTDescriptor"].VR = "US"
    table.LUTData = [9, 8, 7, 6]
    table["LUTData"].VR = "US"
    ds.VOILUTSequence = Sequence([table])
    assert gray_of(ds).tolist() == [[9, 8, 7, 6]]


def test_colours_become_luminance() -> None:
    rgb = RNG.integers(0, 256, (10, 12, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(rgb).convert("L"))
    np.testing.assert_array_equal(gray_of(header(rgb, "RGB")), expected)
    planes = header(rgb, "RGB")
    planes.PlanarConfiguration = 1
    planes.PixelData = np.ascontiguousarray(rgb.transpose(2, 0, 1)).tobytes()
    np.testing.assert_array_equal(gray_of(planes), expected)
    deep = header(rgb.astype(np.uint16) * 257, "RGB")
    np.testing.assert_array_equal(gray_of(deep), expected)


def test_ybr_is_read_with_and_without_subsampling() -> None:
    full = np.full((4, 6, 3), 128, np.uint8)
    full[..., 0] = np.arange(24).reshape(4, 6) * 10  # luminance; a chroma of 128 is gray
    np.testing.assert_array_equal(gray_of(header(full, "YBR_FULL")), full[..., 0])
    halved = header(full, "YBR_FULL_422")
    luminance = full[..., 0].reshape(-1, 2)
    pairs = np.concatenate([luminance, np.full_like(luminance, 128)], axis=1)  # Y Y B R
    halved.PixelData = pairs.tobytes()
    np.testing.assert_array_equal(gray_of(halved), full[..., 0])


@pytest.mark.parametrize("bits", [8, 16])
def test_a_palette_is_looked_up(bits: int) -> None:
    ds = header(np.array([[0, 1, 2]], np.uint8), "PALETTE COLOR")
    kind = np.uint8 if bits == 8 else np.uint16
    table = np.array([250, 7, 100, 0], kind) * kind(1 if bits == 8 else 257)
    for colour in ("Red", "Green", "Blue"):
        setattr(ds, f"{colour}PaletteColorLookupTableDescriptor", [4, 0, bits])
        ds[f"{colour}PaletteColorLookupTableDescriptor"].VR = "US"
        setattr(ds, f"{colour}PaletteColorLookupTableData", table.tobytes())
    assert gray_of(ds).tolist() == [[250, 7, 100]]


def test_one_bit_frames_are_black_and_white() -> None:
    mask = np.zeros((8, 8), np.uint8)
    mask[2:5, 3:7] = 1
    ds = header(mask, bits=1)
    ds.BitsAllocated = 1
    ds.PixelData = pack_bits(mask)
    np.testing.assert_array_equal(gray_of(ds), mask * 255)


def test_compressed_frames_are_read_where_a_decoder_is_there() -> None:
    ds = FileDataset("", header(GRAY), file_meta=FileMetaDataset())
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.compress(RLELossless, generate_instance_uid=False)
    np.testing.assert_array_equal(gray_of(ds, RLELossless), GRAY)
    sink = io.BytesIO()
    smooth = np.add.outer(np.arange(24), np.arange(36)).astype(np.uint8)
    Image.fromarray(smooth).save(sink, "JPEG", quality=100)
    jpeg = header(smooth)
    jpeg.PixelData = encapsulate([sink.getvalue()])
    jpeg["PixelData"].is_undefined_length = True
    assert np.abs(gray_of(jpeg, JPEGBaseline8Bit).astype(int) - smooth).max() <= 2


@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, UID("1.2.840.10008.1.2.4.102")])
def test_a_missing_decoder_is_named(syntax: UID) -> None:
    ds = header(GRAY)
    ds.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
    ds["PixelData"].is_undefined_length = True
    with pytest.raises(DataError, match=r"scan\.png cannot be read: its pixels are compressed as"):
        gray_of(ds, syntax)


def test_several_frames_are_refused() -> None:
    ds = header(GRAY)
    ds.NumberOfFrames, ds.PixelData = 2, GRAY.tobytes() * 2
    with pytest.raises(DataError, match=r"single frame, but scan\.png holds 2; save"):
        gray_of(ds)


def test_an_unknown_kind_of_pixels_is_refused() -> None:
    with pytest.raises(DataError, match=r"scan\.png cannot be read: .*"):
        gray_of(header(GRAY, "HSV"))


def test_large_frames_are_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", GRAY.size - 1)
    with pytest.raises(DataError, match=r"at most 863 pixels, but scan\.png has 36 x 24"):
        gray_of(header(GRAY))


@pytest.mark.parametrize("share", [0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.99])
@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_truncated_files_are_refused_by_name(share: float) -> None:
    data = file(header(GRAY))
    cut = max(133, int(len(data) * share))
    with pytest.raises(DataError, match=r"scan\.dcm cannot be read: "):
        read_gray(data[:cut], "scan.dcm")


@pytest.mark.parametrize("name", ["Rows", "BitsAllocated", "PhotometricInterpretation"])
def test_a_header_without_what_is_needed_is_refused(name: str) -> None:
    ds = header(GRAY)
    del ds[name]
    with pytest.raises(DataError, match=r"scan\.png cannot be read: "):
        gray_of(ds)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_changed_bytes_never_end_in_a_traceback() -> None:
    data = file(header(GRAY[:4, :4]))
    num_read = 0
    for position in range(132, len(data)):
        changed = bytearray(data)
        changed[position] ^= 0x41
        with contextlib.suppress(DataError):
            num_read += read_gray(bytes(changed), "x.dcm").ndim == 2
    assert num_read > 16  # a changed pixel is no error


def test_whatever_is_outside_of_the_tissue_regions_is_black() -> None:
    ds = header(GRAY)
    ds.SequenceOfUltrasoundRegions = Sequence(
        [region((5, 2, 14, 11)), region((20, 4, 36, 8)), region((0, 15, 35, 23), 3, 3)]
    )
    expected = np.zeros_like(GRAY)
    expected[2:12, 5:15] = GRAY[2:12, 5:15]
    expected[4:9, 20:] = GRAY[4:9, 20:]
    np.testing.assert_array_equal(gray_of(ds), expected)


def test_the_surroundings_of_inverted_and_coloured_images_are_black() -> None:
    for pixels, kind in ((GRAY, "MONOCHROME1"), (np.stack([GRAY] * 3, axis=2), "RGB")):
        ds = header(pixels, kind)
        ds.SequenceOfUltrasoundRegions = Sequence([region((5, 2, 14, 11))])
        read = gray_of(ds)
        assert read.shape == GRAY.shape
        assert not read[:, :5].any()
        assert not read[12:].any()
        assert read[2:12, 5:15].any()


@pytest.mark.parametrize(
    "item", [region((5, 2, 14, 11), spatial=3), region((9, 2, 5, 11)), region((90, 2, 99, 9))]
)
def test_regions_without_tissue_or_pixels_hide_nothing(item: Dataset) -> None:
    ds = header(GRAY)
    ds.SequenceOfUltrasoundRegions = Sequence([item])
    np.testing.assert_array_equal(gray_of(ds), GRAY)


def test_the_pixel_size_is_that_of_the_regions_in_millimetres() -> None:
    ds = header(GRAY)
    assert dicom.pixel_size(file(ds)) is None
    ds.PixelSpacing = [0.2, 0.2]
    assert dicom.pixel_size(file(ds)) == pytest.approx(0.2)
    ds.SequenceOfUltrasoundRegions = Sequence([region((5, 2, 14, 11))])  # 0.008 cm
    assert dicom.pixel_size(file(ds)) == pytest.approx(0.08)


def _in_seconds(item: Dataset) -> None:
    item.PhysicalUnitsXDirection = 4


def _unequal(item: Dataset) -> None:
    item.PhysicalDeltaY = 0.009


def _zero(item: Dataset) -> None:
    item.PhysicalDeltaX = item.PhysicalDeltaY = 0.0


@pytest.mark.parametrize("change", [_in_seconds, _unequal, _zero])
def test_a_pixel_without_one_size_in_space_has_none(change: Callable[[Dataset], None]) -> None:
    ds = header(GRAY)
    item = region((5, 2, 14, 11))
    change(item)
    ds.SequenceOfUltrasoundRegions = Sequence([item])
    assert dicom.pixel_size(file(ds)) is None


def test_an_image_that_is_not_dicom_has_no_pixel_size() -> None:
    sink = io.BytesIO()
    Image.fromarray(GRAY).save(sink, "PNG")
    assert dicom.pixel_size(sink.getvalue()) is None


def test_without_pydicom_the_way_to_install_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    data = file(header(GRAY))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(DataError, match=r"scan\.dcm .* run: pip install 'mtil\[dicom\]'"):
        read_gray(data, "scan.dcm")
    with pytest.raises(DataError, match=r"mtil\[dicom\]"):
        dicom.pixel_size(data, "scan.dcm")


def test_big_endian_files_are_read() -> None:
    values = np.array([[0, 257, 65535]], ">u2")
    ds = header(values)
    assert gray_of(ds, ExplicitVRBigEndian).tolist() == [[0, 1, 255]]


def test_a_mask_may_be_dicom_of_eight_bits_or_one() -> None:
    mask = np.zeros((24, 40), np.bool_)
    mask[5:12, 3:20] = True
    np.testing.assert_array_equal(read_mask(file(header(mask.astype(np.uint8) * 255)), "m"), mask)
    ds = header(mask.astype(np.uint8))
    ds.BitsAllocated = ds.BitsStored = 1
    ds.HighBit = 0
    ds.PixelData = pack_bits(mask.astype(np.uint8))
    np.testing.assert_array_equal(read_mask(file(ds), "m"), mask)


BEYOND = [(9, 2, 72, 48), (0, 0, 37, 23), (0, 0, 35, 25), (2**32 - 4, 0, 35, 23), (90, 2, 99, 9)]
"""Boxes that reach beyond a frame of 36 x 24 pixels."""


@pytest.mark.parametrize("box", BEYOND)
@pytest.mark.parametrize(("data_type", "spatial"), [(1, 1), (3, 3)])
def test_regions_of_another_frame_are_not_used(
    box: tuple[int, int, int, int], data_type: int, spatial: int
) -> None:
    ds = header(GRAY)
    ds.SequenceOfUltrasoundRegions = Sequence(
        [region((5, 2, 14, 11)), region(box, data_type, spatial)]
    )
    frame = dicom.open_frame(file(ds), "x", max_pixels=10**6)
    assert (frame.stray_regions, frame.pixel_size) == (True, None)
    np.testing.assert_array_equal(frame.gray(), GRAY)
    ds.PixelSpacing = [0.08, 0.08]  # equal to the region's size, so equally unreliable
    assert dicom.pixel_size(file(ds)) is None
    ds.PixelSpacing = [0.16, 0.16]
    assert dicom.pixel_size(file(ds)) == pytest.approx(0.16)


@pytest.mark.parametrize("box", [(9, 2, 5, 11), (5, 11, 14, 2), (7, 7, 8, 8), None])
def test_regions_that_say_no_place_hide_nothing(box: tuple[int, int, int, int] | None) -> None:
    item = region(box or (0, 0, 35, 23))
    if box is None:
        del item.RegionLocationMaxX1
    tiny = box == (7, 7, 8, 8)  # valid beside a larger region
    for others in ([],) if tiny else ([], [region((5, 2, 14, 11))]):
        ds = header(GRAY)
        ds.SequenceOfUltrasoundRegions = Sequence([*others, item])
        frame = dicom.open_frame(file(ds), "x", max_pixels=10**6)
        assert (frame.stray_regions, frame.pixel_size) == (True, None)
        np.testing.assert_array_equal(frame.gray(), GRAY)


def test_a_far_corner_that_is_the_size_and_overlaps_do_no_harm() -> None:
    ds = header(GRAY)
    ds.SequenceOfUltrasoundRegions = Sequence(
        [region((5, 2, 36, 24)), region((0, 0, 9, 9)), region((10, 4, 20, 9), data_type=2)]
    )
    frame = dicom.open_frame(file(ds), "x", max_pixels=10**6)
    expected = np.zeros_like(GRAY)
    expected[2:, 5:] = GRAY[2:, 5:]
    expected[:10, :10] = GRAY[:10, :10]
    np.testing.assert_array_equal(frame.gray(), expected)
    assert (frame.stray_regions, frame.pixel_size) == (False, pytest.approx(0.08))


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), None, 1e9])
def test_a_region_without_a_pixel_size_leaves_the_spacing(value: float | None) -> None:
    ds = header(GRAY)
    item = region((0, 0, 35, 23))
    if value is None:
        del item.PhysicalDeltaX
    else:
        item.PhysicalDeltaX = item.PhysicalDeltaY = value
    ds.SequenceOfUltrasoundRegions = Sequence([item])
    assert dicom.pixel_size(file(ds)) is None
    ds.PixelSpacing = [0.2, 0.2]
    expected = None if value == 1e9 else pytest.approx(0.2)
    assert dicom.pixel_size(file(ds)) == expected
    np.testing.assert_array_equal(gray_of(ds), GRAY)


@pytest.mark.parametrize("values", [[0.2], [0.2, 0.3], [0.0, 0.0], [-0.2, -0.2]])
def test_a_spacing_that_is_none_is_no_pixel_size(values: list[float]) -> None:
    ds = header(GRAY)
    ds.PixelSpacing = values
    assert dicom.pixel_size(file(ds)) is None


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.parametrize(
    ("center", "width"),
    [
        ("128", "0"), ("128", "-256"), ("128", "0.5"), ("abc", "256"), ("128", "wide"),
        ("nan", "256"), ("128", "inf"), ("128", "1e300"), ("1e300", "256"), ("32768", "65536"),
        ("90000", "256"), ("-90000", "256"), ("", ""), ("128", ""),
    ],
)  # fmt: skip
def test_a_window_that_is_none_is_passed_over(center: str, width: str) -> None:
    data = file(with_text(GRAY, center, width))
    np.testing.assert_array_equal(read_gray(data, "x"), GRAY)


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_of_several_windows_the_first_that_is_one_counts() -> None:
    values = np.array([[0, 50, 100, 150, 200]], np.uint8)
    data = file(with_text(values, "10\\100\\150", "0\\100\\10"))
    # (value - 99.5) / 99 + 0.5, scaled to 255 and clipped
    assert read_gray(data, "x").tolist() == [[0, 0, 129, 255, 255]]


def with_text(pixels: Pixels, center: str, width: str) -> Dataset:
    """Return a header with any text as window."""
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import Tag

    ds = header(pixels)
    for tag, text in ((0x00281050, center), (0x00281051, width)):
        value = text.encode()
        value += b" " * (len(value) % 2)
        ds[tag] = RawDataElement(Tag(tag), "DS", len(value), value, 0, False, True)
    return ds


def test_a_sigmoid_window_is_applied() -> None:
    ds = header(np.array([[0, 100, 150, 255]], np.uint8))
    ds.WindowCenter, ds.WindowWidth, ds.VOILUTFunction = 100, 100, "SIGMOID"
    expected = [round(255 / (1 + np.exp(-4 * (value - 100) / 100))) for value in (0, 100, 150, 255)]
    assert gray_of(ds).tolist() == [expected]


def test_a_damaged_table_of_interest_leaves_the_pixels() -> None:
    ds = header(GRAY)
    ds.VOILUTSequence = Sequence([Dataset()])
    np.testing.assert_array_equal(gray_of(ds), GRAY)


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.parametrize("slope", ["nan", "steep", "1\\2"])
def test_a_slope_that_is_no_number_is_passed_over(slope: str) -> None:
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import Tag

    ds = header(GRAY)
    value = slope.encode() + b" " * (len(slope) % 2)
    ds[0x00281053] = RawDataElement(Tag(0x00281053), "DS", len(value), value, 0, False, True)
    ds.RescaleIntercept = 0
    np.testing.assert_array_equal(read_gray(file(ds), "x"), GRAY)


def test_bits_that_are_not_the_pixels_do_not_count() -> None:
    values = np.array([[0, 1000, 4095]], np.uint16)
    overlaid = values | np.array([[0xF000, 0, 0x1000]], np.uint16)
    assert gray_of(header(overlaid, bits=12)).tolist() == [[0, 62, 255]]
    signed = np.array([[-2048, 0, 2047]], np.int16)
    overlaid = (signed & 0x0FFF) | np.array([[0, 0x4000, 0x1000]], np.int16)
    assert gray_of(header(overlaid, bits=12)).tolist() == [[0, 128, 255]]


def test_frames_that_the_header_does_not_count_are_refused() -> None:
    ds = header(GRAY)
    ds.PixelData = GRAY.tobytes() * 3
    with pytest.raises(DataError, match=r"single frame, but scan\.png holds 3; save"):
        gray_of(ds)
    two = FileDataset("", header(np.stack([GRAY, GRAY])), file_meta=FileMetaDataset())
    two.Rows, two.Columns, two.NumberOfFrames = *GRAY.shape, 2
    two.SamplesPerPixel, two.PhotometricInterpretation = 1, "MONOCHROME2"
    two.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    two.compress(RLELossless, generate_instance_uid=False)
    del two.NumberOfFrames
    with pytest.raises(DataError, match=r"single frame, but scan\.png holds 2; save"):
        gray_of(two, RLELossless)


def deflated(ds: Dataset, more: bytes = b"") -> bytes:
    """Return the bytes of a deflated file, with `more` after the pixels."""
    import zlib

    plain = file(ds, ExplicitVRLittleEndian)
    length = int.from_bytes(plain[140:144], "little")
    meta, body = plain[144 : 144 + length], plain[144 + length :] + more
    meta = meta.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99")
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    head = bytearray(plain[:144])
    at = meta.index(b"1.2.840.10008.1.2.1.99")
    meta = meta[: at - 2] + (22).to_bytes(2, "little") + meta[at:]
    head[140:144] = len(meta).to_bytes(4, "little")
    return bytes(head) + meta + packer.compress(body) + packer.flush()


def test_a_deflated_file_is_read() -> None:
    np.testing.assert_array_equal(read_gray(deflated(header(GRAY)), "x"), GRAY)


def test_a_deflated_file_is_inflated_no_further_than_its_frame() -> None:
    padding = b"\xfc\xff\xfc\xffOB\0\0" + (2**26).to_bytes(4, "little") + bytes(2**26)
    data = deflated(header(GRAY), padding)
    assert len(data) < 2**17
    with pytest.raises(DataError, match=r"bomb\.dcm inflates to more than 16,778,080 bytes"):
        read_gray(data, "bomb.dcm")
    large = header(GRAY)
    large.Rows = large.Columns = 60_000
    with pytest.raises(DataError, match=r"pixels, but bomb\.dcm has 60000 x 60000"):
        read_gray(deflated(large), "bomb.dcm")


def test_compressed_pixels_of_another_size_are_refused_before_they_are_decoded() -> None:
    sink = io.BytesIO()
    Image.new("L", (4000, 3000)).save(sink, "JPEG")
    jpeg = header(GRAY)
    jpeg.PixelData = encapsulate([sink.getvalue()])
    jpeg["PixelData"].is_undefined_length = True
    with pytest.raises(
        DataError, match=r"must be 36 x 24, as its header says, but are 4000 x 3000"
    ):
        gray_of(jpeg, JPEGBaseline8Bit)
    packed = header(GRAY)
    start = (1).to_bytes(4, "little") + (64).to_bytes(4, "little") + bytes(56)
    packed.PixelData = encapsulate([start + b"\x81\x00" * 100_000])  # 12.8 million zeros
    packed["PixelData"].is_undefined_length = True
    with pytest.raises(DataError, match="unpacks to more than 864 bytes"):
        gray_of(packed, RLELossless)


def test_a_mask_of_sixteen_bits_keeps_its_ones() -> None:
    mask = np.zeros((24, 40), np.uint16)
    mask[5:12, 3:20] = 1
    np.testing.assert_array_equal(read_mask(file(header(mask)), "m"), mask == 1)
    inverse = header((1 - mask).astype(np.uint8), "MONOCHROME1", bits=1)
    inverse.BitsAllocated = 8
    np.testing.assert_array_equal(read_mask(file(inverse), "m"), mask == 1)
