"""Constants of nature that fields and frequencies are computed with; free of tensors, for who reads headers alone."""

from __future__ import annotations

GAMMA_MHZ_PER_T = 42.577478  # proton gyromagnetic ratio / 2 pi
