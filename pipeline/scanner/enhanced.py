"""Classic Philips images of one series -> one Enhanced MR Image Storage file with functional groups for every frame."""

from __future__ import annotations

from typing import Any

from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import EnhancedMRImageStorage

from pipeline.scanner.images import Exam, item, items

_COMPONENTS = {"M": "MAGNITUDE", "P": "PHASE"}
_PER_FRAME = {  # of a classic image: what the frames' functional groups say instead
    "EchoTime", "EchoNumbers", "EchoTrainLength", "SliceThickness", "SpacingBetweenSlices", "RepetitionTime",
    "FlipAngle", "NumberOfAverages", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
    "SliceLocation", "WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept", "RescaleType",
    "AcquisitionMatrix", "InPlanePhaseEncodingDirection", "ImagingFrequency", "ImagedNucleus", "ScanningSequence",
    "SequenceVariant", "AcquisitionDate", "AcquisitionTime", "PixelData",
}  # fmt: skip


def join(images: list[Dataset], exam: Exam) -> Dataset:
    """One multi-frame dataset; frames stand in the order of `images`, which are classic ones of one series."""
    dataset = Dataset()
    dataset.update({e.tag: e for e in images[0] if not e.tag.is_private and e.keyword not in _PER_FRAME})
    organisation = exam.uid("dimensions", exam.series_number)
    positions = sorted({float(image.SliceLocation) for image in images})
    header: dict[str, Any] = {
        "SOPClassUID": EnhancedMRImageStorage,
        "SOPInstanceUID": exam.uid("enhanced", exam.series_number),
        "ImageType": ["ORIGINAL", "PRIMARY", "T1", "MIXED"],
        "AcquisitionDateTime": exam.acquired.strftime("%Y%m%d%H%M%S.%f"),
        "InstanceNumber": 1,
        "PixelPresentation": "MONOCHROME",
        "VolumetricProperties": "VOLUME",
        "VolumeBasedCalculationTechnique": "NONE",
        "ComplexImageComponent": "MIXED",
        "AcquisitionContrast": "T1",
        "ContentQualification": "RESEARCH",
        "ResonantNucleus": "1H",
        "EchoPulseSequence": "GRADIENT",
        "MultipleSpinEcho": "NO",
        "BurnedInAnnotation": "NO",
        "LossyImageCompression": "00",
        "PresentationLUTShape": "IDENTITY",
        "AcquisitionContextSequence": items(),
        "NumberOfFrames": len(images),
        "DimensionOrganizationSequence": items(item(DimensionOrganizationUID=organisation)),
        "DimensionIndexSequence": items(*_dimensions(organisation)),
        "SharedFunctionalGroupsSequence": items(_shared(images[0], exam)),
        "PerFrameFunctionalGroupsSequence": items(*(_frame(image, positions, exam) for image in images)),
    }
    for keyword, value in header.items():
        setattr(dataset, keyword, value)
    dataset.add_new("PixelData", "OW", b"".join(image.PixelData for image in images))
    return dataset


def _dimensions(organisation: str) -> list[Dataset]:
    """What the frames differ by: stack, slice, magnitude or phase, echo time."""
    content, private = tag_for_keyword("FrameContentSequence"), Tag(0x2005, 0x140F)
    pointers = (
        (tag_for_keyword("StackID"), content, "Stack ID"),
        (tag_for_keyword("InStackPositionNumber"), content, "In-Stack Position Number"),
        (Tag(0x2005, 0x1011), private, "Private ImageTypeMR"),
        (tag_for_keyword("EffectiveEchoTime"), tag_for_keyword("MREchoSequence"), "Effective Echo Time"),
    )
    dimensions = []
    for pointer, group, label in pointers:
        dimension = item(
            DimensionOrganizationUID=organisation,
            DimensionIndexPointer=pointer,
            FunctionalGroupPointer=group,
            DimensionDescriptionLabel=label,
        )
        if group == private:
            dimension.DimensionIndexPrivateCreator = "Philips MR Imaging DD 001"
            dimension.FunctionalGroupPrivateCreator = "Philips MR Imaging DD 005"
        dimensions.append(dimension)
    return dimensions


def _shared(image: Dataset, exam: Exam) -> Dataset:
    timing = item(RepetitionTime=image.RepetitionTime, FlipAngle=image.FlipAngle, EchoTrainLength=image.EchoTrainLength)
    geometry = item(
        InPlanePhaseEncodingDirection="ROW",
        MRAcquisitionFrequencyEncodingSteps=image.Rows,
        MRAcquisitionPhaseEncodingStepsInPlane=image.Columns,
    )
    modifier = item(PixelBandwidth=image.PixelBandwidth, TransmitterFrequency=float(image.ImagingFrequency))
    return item(
        MRTimingAndRelatedParametersSequence=items(timing),
        MRFOVGeometrySequence=items(geometry),
        MRImagingModifierSequence=items(modifier),
        MRAveragesSequence=items(item(NumberOfAverages=image.NumberOfAverages)),
    )


def _frame(image: Dataset, positions: list[float], exam: Exam) -> Dataset:
    """The functional groups of one frame; the private one repeats the classic header, as Philips does."""
    letter = str(image.ImageType[3])
    kind = item(
        FrameType=["ORIGINAL", "PRIMARY", "T1", letter],
        PixelPresentation="MONOCHROME",
        VolumetricProperties="VOLUME",
        VolumeBasedCalculationTechnique="NONE",
        ComplexImageComponent=_COMPONENTS[letter],
        AcquisitionContrast="T1",
    )
    position = positions.index(float(image.SliceLocation)) + 1
    content = item(
        FrameAcquisitionDateTime=exam.acquired.strftime("%Y%m%d%H%M%S.%f"),
        StackID="1",
        InStackPositionNumber=position,
        TemporalPositionIndex=1,
        DimensionIndexValues=[1, position, 0 if letter == "M" else 3, int(image.EchoNumbers)],
    )
    measures = item(
        SliceThickness=image.SliceThickness,
        SpacingBetweenSlices=image.SpacingBetweenSlices,
        PixelSpacing=image.PixelSpacing,
    )
    rescale = item(RescaleSlope=image.RescaleSlope, RescaleIntercept=image.RescaleIntercept, RescaleType="US")
    frame = item(
        MREchoSequence=items(item(EffectiveEchoTime=float(image.EchoTime))),
        MRImageFrameTypeSequence=items(kind),
        FrameContentSequence=items(content),
        PlanePositionSequence=items(item(ImagePositionPatient=image.ImagePositionPatient)),
        PlaneOrientationSequence=items(item(ImageOrientationPatient=image.ImageOrientationPatient)),
        PixelMeasuresSequence=items(measures),
        FrameVOILUTSequence=items(item(WindowCenter=image.WindowCenter, WindowWidth=image.WindowWidth)),
        PixelValueTransformationSequence=items(rescale),
    )
    frame.add_new((0x2005, 0x0014), "LO", "Philips MR Imaging DD 005")
    frame.add_new((0x2005, 0x140F), "SQ", items(_classic(image)))
    return frame


def _classic(image: Dataset) -> Dataset:
    keywords = """
        ImageType EchoTime EchoNumbers InstanceNumber ImagePositionPatient PixelSpacing RescaleSlope RescaleIntercept
        ImagingFrequency ImagedNucleus
    """
    classic = item(**{keyword: image[keyword].value for keyword in keywords.split()})
    classic.update({e.tag: e for e in image if e.tag.is_private})
    return classic
