"""Simulated heads: the same at every voxel size, made of what the table says, and sources of a linear field."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from models.dipole import Dipole
from models.head import (
    BRAIN,
    TISSUES,
    Head,
    fields,
    head_from_labels,
    resample_labels,
    simulate_head,
)

LESIONS = ("calcification", "haemorrhage")


@cache
def head_at(size_mm: float, seed: int = 0) -> Head:
    shape = [round(mm / size_mm) for mm in (162, 204, 168)]
    return simulate_head(shape, (size_mm,) * 3, seed=seed, lesions=LESIONS)


def volume_ml(head: Head, tissue: str) -> float:
    size = head.voxel_size_mm
    return float(((head.labels == TISSUES[tissue].code) & head.brain).sum()) * size[0] * size[1] * size[2] / 1000


def test_a_seed_makes_one_head_and_another_seed_another() -> None:
    a, b, c = (simulate_head((40, 48, 40), (5, 5, 5), seed=s, lesions=LESIONS) for s in (3, 3, 4))
    for name in ("labels", "chi_ppm", "m0", "t1_s", "r2star_3t", "brain"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert not torch.equal(a.labels, c.labels)


def test_every_tissue_is_there() -> None:
    found = set(head_at(2.0).labels.unique().tolist())
    assert found == {t.code for t in TISSUES.values()}


@pytest.mark.parametrize("tissue", [*BRAIN, "CSF"])
def test_volumes_do_not_depend_on_the_voxel_size(tissue: str) -> None:
    fine, coarse = volume_ml(head_at(2.0), tissue), volume_ml(head_at(3.0), tissue)
    assert coarse == pytest.approx(fine, rel=0.1, abs=0.15)


@pytest.mark.parametrize("seed", range(4))
def test_the_brain_has_the_size_of_a_brain(seed: int) -> None:
    head = head_at(3.0, seed)
    litres = float(head.brain.sum()) * 27e-6
    assert 1.0 < litres < 1.7
    assert 0.35 < volume_ml(head, "grey matter") / 1000 < 0.8
    assert 0.35 < volume_ml(head, "white matter") / 1000 < 0.8


@pytest.mark.parametrize("tissue", [*BRAIN, "CSF"])
def test_chi_inside_a_tissue_is_that_of_the_table(tissue: str) -> None:
    head, row = head_at(2.0), TISSUES[tissue]
    region = (head.labels == row.code) & head.brain
    inner = region & (_eroded(region) if tissue in ("white matter", "grey matter", "thalamus", "CSF") else region)
    assert float(head.chi_ppm[inner].mean()) == pytest.approx(row.chi_ppm, rel=0.25, abs=0.006)
    assert float(head.chi_ppm[inner].std()) > 0.5 * row.texture_ppm


def _eroded(region: torch.Tensor) -> torch.Tensor:
    return -torch.nn.functional.max_pool3d(-region[None].float(), 3, stride=1, padding=1)[0] > 0.5


def test_the_texture_is_smooth_noise_not_white() -> None:
    head = head_at(2.0)
    white = (head.labels == TISSUES["white matter"].code) & (head.chi_ppm.abs() < 0.1)
    pairs = white[1:] & white[:-1]
    a, b = head.chi_ppm[1:][pairs], head.chi_ppm[:-1][pairs]
    assert 0.3 < float(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 0.99


def test_lesions_are_what_was_asked_for() -> None:
    plain = simulate_head((54, 68, 56), (3, 3, 3))
    hurt = simulate_head((54, 68, 56), (3, 3, 3), lesions=LESIONS)
    assert not set(plain.labels.unique().tolist()) & {TISSUES[name].code for name in LESIONS}
    assert float(hurt.chi_ppm[hurt.brain].min()) < -1.5 < float(plain.chi_ppm[plain.brain].min())
    with pytest.raises(ValueError, match="no lesion is called tumour"):
        simulate_head((20, 20, 20), (8, 8, 8), lesions=("tumour",))


def test_without_a_skull_there_is_air_around() -> None:
    head = simulate_head((54, 68, 56), (3, 3, 3), skull=False)
    assert not set(head.labels.unique().tolist()) & {TISSUES[name].code for name in ("bone", "fat", "muscle")}


@pytest.mark.parametrize(
    ("shape", "size"), [((31, 40, 33), (3.0, 3.0, 3.0)), ((17, 64, 25), (2.0, 3.1, 5.0)), ((9, 8, 7), (2.0, 2.0, 2.0))]
)
def test_any_shape_and_voxel_size(shape: tuple[int, int, int], size: tuple[float, float, float]) -> None:
    head = simulate_head(shape, size)
    total, local = fields(head, (0.3, -0.1, 1))
    for volume in (head.labels, head.chi_ppm, head.m0, head.t1_s, head.r2star_3t, head.brain, total, local):
        assert tuple(volume.shape) == shape
        assert bool(torch.isfinite(volume.float()).all())
    assert bool(head.brain.any()) and float(head.t1_s.min()) > 0 and float(head.r2star_3t.min()) >= 0


def test_the_total_field_is_the_local_one_and_that_of_the_rest() -> None:
    """What is added within the brain adds the same to both fields; what is added outside leaves the local one alone."""
    head = simulate_head((45, 56, 46), (4, 4, 4), seed=1)
    total, local = fields(head, (0, 0.2, 1))
    added = 0.1 * torch.randn(head.chi_ppm.shape, generator=torch.Generator().manual_seed(0))
    inner, outer = _eroded(head.brain), ~head.brain
    total_in, local_in = fields(replace(head, chi_ppm=head.chi_ppm + added * inner), (0, 0.2, 1))
    total_out, local_out = fields(replace(head, chi_ppm=head.chi_ppm + added * outer), (0, 0.2, 1))
    grown = local_in - local
    assert float(grown[head.brain].std()) > 0.01
    torch.testing.assert_close(total_in - total, grown - grown[head.brain].mean(), atol=1e-4, rtol=0)
    assert float((total_out - total)[head.brain].std()) > 0.001
    torch.testing.assert_close(local_out, local)


def test_background_and_local_fields_have_their_sizes() -> None:
    head = head_at(3.0)
    total, local = fields(head, (0, 0, 1))
    assert float((total - local)[head.brain].std()) > 3 * float(local[head.brain].std())
    assert 0.005 < float(local[head.brain].std()) < 0.1


def test_a_cut_neck_goes_on() -> None:
    """A taller field of view changes the field in the upper half of the head little."""
    low, tall = simulate_head((45, 56, 44), (4, 4, 4)), simulate_head((45, 56, 72), (4, 4, 4))
    a, b = fields(low, (0, 0, 1))[0], fields(tall, (0, 0, 1))[0][:, :, 14:58]
    ended = Dipole(low.labels.shape, (4, 4, 4), (0, 0, 1)).forward(low.chi_ppm - TISSUES["air"].chi_ppm)
    top = low.brain.clone()
    top[:, :, :20] = False
    assert float((a - b)[top].std()) < 0.3 * float(b[top].std())
    assert float((a - b)[top].std()) < 0.7 * float((ended - b)[top].std())


def test_the_fields_are_those_of_the_dipole() -> None:
    """A head in the middle of air: the total field is the dipole's of chi against air, the local that of the brain."""
    head = simulate_head((48, 56, 48), (5, 5, 5), skull=False)
    keep = torch.zeros_like(head.brain)
    keep[4:-4, 4:-4, 4:-4] = True
    chi = torch.where(keep, head.chi_ppm, TISSUES["air"].chi_ppm)
    head = Head(head.labels, chi, head.m0, head.t1_s, head.r2star_3t, head.brain & keep, head.voxel_size_mm)
    total, local = fields(head, (0, 0, 1))
    dipole = Dipole(chi.shape, head.voxel_size_mm, (0, 0, 1))
    whole = dipole.forward(chi - TISSUES["air"].chi_ppm)
    # not exact: each padded size has its own far images of the head
    torch.testing.assert_close(total, whole - whole[head.brain].mean(), atol=0.02, rtol=0)
    torch.testing.assert_close(local, dipole.forward(chi * head.brain), atol=1e-4, rtol=0)
    assert float(total.std()) > 0.5
    assert abs(float(total[head.brain].mean())) < 1e-4


def test_a_label_map_gives_its_own_anatomy() -> None:
    template = simulate_head((60, 72, 60), (3, 3, 3), seed=2)
    names = {t.code: name for name, t in TISSUES.items()}
    absent = {TISSUES[n].code: TISSUES["white matter"].code for n in ("red nucleus", "substantia nigra")}
    labels = template.labels.clone()
    for code, host in absent.items():
        labels[labels == code] = host
    head = head_from_labels(labels, (3, 3, 3), names={c: n for c, n in names.items() if c not in absent})
    same = head.labels == labels
    assert float(same[head.brain].float().mean()) > 0.97
    for code in absent:
        then, now = (template.labels == code).nonzero().float(), (head.labels == code).nonzero().float()
        assert len(now) > 3
        assert float((then.mean(0) - now.mean(0)).norm()) < 2  # voxels
    overlap = (head.brain & template.brain).sum() / (head.brain | template.brain).sum()
    assert float(overlap) > 0.85


def test_a_label_without_a_name_is_refused() -> None:
    labels = torch.full((8, 8, 8), 999, dtype=torch.int16)
    with pytest.raises(ValueError, match=r"without a name: \[999\]"):
        head_from_labels(labels, (1, 1, 1))
    with pytest.raises(ValueError, match="the labels lack one"):
        head_from_labels(torch.full((8, 8, 8), 2, dtype=torch.int16), (1, 1, 1))
    assert bool(head_from_labels(torch.full((8, 8, 8), 2, dtype=torch.int16), (1, 1, 1), veins=False).brain.any())


def test_resampled_labels_keep_volumes_and_pad_with_air() -> None:
    labels = torch.zeros((40, 44, 48), dtype=torch.int16)
    labels[10:30, 12:32, 20:40] = 2
    coarse = resample_labels(labels, (1, 1, 1), (30, 12, 14), (2, 2, 2))
    assert int((coarse == 2).sum()) * 8 == 20**3
    assert not bool(coarse[:5].any())


@pytest.mark.real_data
def test_a_real_label_map_makes_a_head(shared_data: Path) -> None:
    nib = pytest.importorskip("nibabel")
    image = nib.as_closest_canonical(nib.load(shared_data / "head_labels" / "training_seg_02.nii.gz"))
    labels = torch.from_numpy(image.get_fdata(dtype="float32")).short()
    head = head_from_labels(resample_labels(labels, (1, 1, 1), (64, 76, 64), (3, 3, 3)), (3, 3, 3))
    assert 1.0 < float(head.brain.sum()) * 27e-6 < 1.7
    for name in (*BRAIN, "vein", "bone", "fat"):
        assert bool((head.labels == TISSUES[name].code).any()), name
    assert float(head.chi_ppm[head.brain].abs().max()) < 0.5
