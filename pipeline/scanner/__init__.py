"""Complex echoes of a simulated head -> a DICOM export as a Siemens, Philips or GE scanner writes it.

`export` writes the files and what all vendors share; `geometry` cuts a grid into slices; one file a vendor holds how
that vendor stores phase, names its images and orders them.
"""

from pipeline.scanner.export import VENDORS, magnet_tesla, write_export
from pipeline.scanner.images import Patient

__all__ = ["VENDORS", "Patient", "magnet_tesla", "write_export"]
