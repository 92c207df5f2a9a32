"""A scan found in an export -> its echoes in stored units, with geometry and facts checked against the headers."""

from __future__ import annotations

from pathlib import Path

from pipeline.acquisition import Acquisition
from pipeline.convert.dicom import convert_dicom
from pipeline.convert.nifti import convert_nifti
from pipeline.convert.stored import Stored
from pipeline.find.scan import Scan

__all__ = ["Acquisition", "Stored", "convert"]


def convert(scan: Scan, acquisition: Acquisition, scratch: Path) -> Stored:
    """Pixels and geometry of all echoes and parts, on the CPU; `scratch` is made, used and removed.

    DICOM goes through dcm2niix and is compared with what pydicom reads: E014 where they disagree. BIDS goes through
    nibabel.
    """
    return convert_dicom(scan, acquisition, scratch) if scan.source == "dicom" else convert_nifti(scan, acquisition)
