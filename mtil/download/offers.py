"""Collections to download: addresses, checksums and licences; instructions for all others."""

from dataclasses import dataclass

from mtil.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file of a collection. A `.zip` is unpacked; another file is copied beside the contents."""

    name: str
    address: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A collection available for download."""

    name: str
    title: str
    layout: str
    """Layout name for `mtil prepare --layout`."""
    page: str
    """Web page of the collection, for readers and for when a file's address is gone."""
    licence: str
    citation: str
    files: tuple[RemoteFile, ...]

    @property
    def num_bytes(self) -> int:
        """Total size of the files in bytes."""
        return sum(file.num_bytes for file in self.files)


# Address, size and sha256 of all three files: release-manifest.json below
# inst/extdata/campaign/segmentation/provenance of github.com/isglobal-brge/dsFlowerClient, at
# 3f1f942e. The sha256 of BUSBRA.zip is also in torch_em/data/datasets/medical/busbra.py of
# github.com/constantinpape/torch-em, and its download matched the md5 that Zenodo publishes,
# 1f8b2be6476d58fc97bfb5e5a1ea9bab. TCIA publishes no checksums: the BrEaST checksums are of the
# files as of 2026-09-18. Licences: zenodo.org/records/8231412 and the page of the TCIA
# collection, by ATTRIBUTION.md beside the manifest.
OFFERS: dict[str, Offer] = {
    "bus_bra": Offer(
        name="bus_bra",
        title="BUS-BRA",
        layout="bus_bra",
        page="https://doi.org/10.5281/zenodo.8231412",
        licence="CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/); cite the article",
        citation=(
            "Gómez-Flores W, Gregorio-Calas MJ, Coelho de Albuquerque Pereira W. BUS-BRA: A "
            "breast ultrasound dataset for assessing computer-aided diagnosis systems. Medical "
            "Physics 51 (2024) 3110-3123. doi:10.1002/mp.16812"
        ),
        files=(
            RemoteFile(
                name="BUSBRA.zip",
                address="https://zenodo.org/api/records/8231412/files/BUSBRA.zip/content",
                num_bytes=133_917_740,
                sha256="ba3e6ed19cc37c682d8d39e25435bbf8a555a12cb7e641b5f2117685c95580ff",
            ),
        ),
    ),
    "breast": Offer(
        name="breast",
        title="BrEaST",
        layout="breast",
        page="https://doi.org/10.7937/9WKK-Q141",
        licence=(
            "CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/) and the Data Usage Policy "
            "of The Cancer Imaging Archive; cite the data and the article"
        ),
        citation=(
            "Pawłowska A, Ćwierz-Pieńkowska A, Domalik A, Jaguś D, Kasprzak P, Matkowski R, Fura "
            "Ł, Nowicki A, Żołek N. A curated benchmark dataset for ultrasound based breast "
            "lesion analysis (Breast-Lesions-USG), version 1. The Cancer Imaging Archive (2024). "
            "doi:10.7937/9WKK-Q141; and Scientific Data 11 (2024) 148. "
            "doi:10.1038/s41597-024-02984-z"
        ),
        files=(
            RemoteFile(
                name="BrEaST-Lesions_USG-images_and_masks-Dec-15-2023.zip",
                address=(
                    "https://www.cancerimagingarchive.net/wp-content/uploads/"
                    "BrEaST-Lesions_USG-images_and_masks-Dec-15-2023.zip"
                ),
                num_bytes=69_862_076,
                sha256="c32e49cdfa54042e065582d0cb35978b5fc5e5b5e461b33bf773fb50cfdad355",
            ),
            RemoteFile(
                name="BrEaST-Lesions-USG-clinical-data-Dec-15-2023.xlsx",
                address=(
                    "https://www.cancerimagingarchive.net/wp-content/uploads/"
                    "BrEaST-Lesions-USG-clinical-data-Dec-15-2023.xlsx"
                ),
                num_bytes=40_173,
                sha256="89a8874496a6f1f93960390b963f7369b90f7e72ee08a738f2d17e37f5eff8bf",
            ),
        ),
    ),
}

# BUSI: its page asks for citation and states no standard licence. BUS-B: "request permission" at
# this address in github.com/hugofigueiras/Breast-Cancer-Imaging-Datasets. BUS-UCLM: the only direct
# address in print, in github.com/noeliavallez/BUS-UCLM-Dataset, is of version 1, which that
# repository calls both CC BY 4.0 and CC BY-NC 4.0; version 3 is CC BY 4.0 by its page, and
# docs/BUSUCLM_STEPS.md of github.com/surabhif/Breast-ultrasound-lesion-segmentation reports that
# programs are refused there with status 403.
MANUAL_DOWNLOADS: dict[str, str] = {
    "busi": (
        "BUSI states no standard licence and is not fetched automatically: get it from "
        "https://scholar.cu.edu.eg/?q=afahmy/pages/dataset, unpack it and give the folder to "
        "`mtil prepare --layout busi`."
    ),
    "udiat": (
        "BUS-B (UDIAT) is given out by its authors on request: ask for Breast Ultrasound Dataset "
        "B as https://helward.mmu.ac.uk/STAFF/M.Yap/dataset.php describes, unpack it and give the "
        "folder to `mtil prepare --layout udiat`."
    ),
    "bus_uclm": (
        "BUS-UCLM has no address open to programs: get version 3, which is CC BY 4.0, in a "
        "browser from https://doi.org/10.17632/7fvgj4jsp7.3, unpack it and give the folder to "
        "`mtil prepare --layout bus_uclm`."
    ),
}


def find_offer(name: str) -> Offer:
    """Return the collection with a name such as `bus_bra` or `BUS-BRA`.

    Raises:
        DataError: if the name is unknown, or the collection cannot be downloaded. The error says
            how to get the collection.
    """
    key = name.lower().replace("-", "_")
    if key in OFFERS:
        return OFFERS[key]
    if key in MANUAL_DOWNLOADS:
        raise DataError(MANUAL_DOWNLOADS[key])
    raise DataError(
        f"A collection must be one of {', '.join([*OFFERS, *MANUAL_DOWNLOADS])}, but got {name!r}."
    )
