"""A sensor window becomes log spectra: the same module in the teacher and inside the student.

The windowed DFT is a product with a fixed matrix, so that it exports to ONNX and TensorRT without
FFT operators. Everything is standardised first by each channel's own mean and deviation, so that
units (g, N, degC) do not matter and FP16 holds the powers.

Shapes: B batch, C channels, T readings, M frames, N time tokens, S readings per frame,
K frequencies (S / 2 + 1), D features per token (K + 3).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

MIN_READINGS = 8
_POWER_FLOOR = 1e-4  # of the channel's variance: 40 dB below it, and a normal number in FP16
_STILL = 1e-6  # a channel that moves less than this share of its mean stands still
_LEAST_DEVIATION = 0.02  # of a feature: less is rounding, and would be blown up
_LIMIT = 8.0  # standard deviations; what lies further is as wrong as it gets
_LEVELS = 3  # mean, root mean square, peak


class SpectralFrames(nn.Module):
    """float [B, C, T] in physical units -> standardised features [B, C, N, D] (`fit` once)."""

    mean_C: Tensor
    scale_C: Tensor
    cosine_SK: Tensor
    sine_SK: Tensor
    average_NM: Tensor
    feature_mean_CD: Tensor
    feature_scale_CD: Tensor

    def __init__(self, channels: int, samples: int, frame_samples: int, time_tokens: int) -> None:
        super().__init__()
        assert samples >= MIN_READINGS
        self.frame = min(frame_samples, 2 ** int(math.log2(samples)))
        self.frame -= self.frame % 2
        self.hop = self.frame // 2
        self.hops = samples // self.hop
        frames = self.hops - 1
        self.tokens = min(time_tokens, frames)
        self.size = self.frame // 2 + 1 + _LEVELS
        cosine_SK, sine_SK = windowed_dft(self.frame)
        self.register_buffer("cosine_SK", cosine_SK)
        self.register_buffer("sine_SK", sine_SK)
        self.register_buffer("average_NM", _averaging(self.tokens, frames))
        self.register_buffer("mean_C", torch.zeros(channels))
        self.register_buffer("scale_C", torch.ones(channels))
        self.register_buffer("feature_mean_CD", torch.zeros(channels, self.size))
        self.register_buffer("feature_scale_CD", torch.ones(channels, self.size))

    @torch.no_grad()
    def fit(self, windows_BCT: Tensor) -> None:
        """Take the standardisation from these windows; a channel that never moves keeps 1."""
        self.mean_C.copy_(windows_BCT.mean((0, 2)))
        scale_C = windows_BCT.std((0, 2), unbiased=False)
        still_C = scale_C <= _STILL * self.mean_C.abs()
        self.scale_C.copy_(torch.where(still_C, torch.ones_like(scale_C), scale_C))
        features_BCND = self._features(windows_BCT)
        self.feature_mean_CD.copy_(features_BCND.mean((0, 2)))
        deviation_CD = features_BCND.std((0, 2), unbiased=False)
        self.feature_scale_CD.copy_(deviation_CD.clamp_min(_LEAST_DEVIATION))

    def forward(self, sensor_BCT: Tensor) -> Tensor:
        """Return [B, C, N, D]: log powers, mean, log level and log peak of each time token."""
        x_BCND = self._features(sensor_BCT) - self.feature_mean_CD[:, None]
        return torch.clamp(x_BCND / self.feature_scale_CD[:, None], -_LIMIT, _LIMIT)

    def _features(self, sensor_BCT: Tensor) -> Tensor:
        x_BCT = (sensor_BCT - self.mean_C[:, None]) / self.scale_C[:, None]
        batch, channels, _ = x_BCT.shape
        # Frames overlap by half: each is one hop followed by the next, so no unfold is needed.
        hops = x_BCT[..., : self.hops * self.hop].reshape(batch, channels, self.hops, self.hop)
        x_BCMS = torch.cat([hops[:, :, :-1], hops[:, :, 1:]], -1)
        power_BCMK = (x_BCMS @ self.cosine_SK) ** 2 + (x_BCMS @ self.sine_SK) ** 2
        level_BCM1 = x_BCMS.mean(-1, keepdim=True)
        square_BCM1 = (x_BCMS * x_BCMS).mean(-1, keepdim=True)
        peak_BCM1 = x_BCMS.abs().amax(-1, keepdim=True)
        power_BCNK = self.average_NM @ power_BCMK
        return torch.cat(
            [
                torch.log(power_BCNK + _POWER_FLOOR),
                self.average_NM @ level_BCM1,
                torch.log(self.average_NM @ square_BCM1 + _POWER_FLOOR),
                torch.log(self.average_NM @ peak_BCM1 + _POWER_FLOOR),
            ],
            -1,
        )


def windowed_dft(size: int) -> tuple[Tensor, Tensor]:
    """Return cosine and sine parts [S, S / 2 + 1] of a Hann-windowed DFT.

    Scaled so that white noise of variance 1 has power 1 at every frequency (Welch's method;
    Heinzel et al., "Spectrum and spectral density estimation by the DFT", 2002, eq. 23).
    """
    window_S = torch.hann_window(size, periodic=True, dtype=torch.float64)
    window_S = window_S / torch.sqrt((window_S**2).sum())
    readings_S = torch.arange(size, dtype=torch.float64)
    frequencies_K = torch.arange(size // 2 + 1, dtype=torch.float64)
    angle_SK = 2.0 * math.pi / size * torch.outer(readings_S, frequencies_K)
    cosine_SK = torch.cos(angle_SK) * window_S[:, None]
    return cosine_SK.float(), (torch.sin(angle_SK) * window_S[:, None]).float()


def _averaging(tokens: int, frames: int) -> Tensor:
    """Return [N, M]: row n averages the n-th stretch of neighbouring frames."""
    average_NM = torch.zeros(tokens, frames)
    for frame in range(frames):
        average_NM[frame * tokens // frames, frame] = 1.0
    return average_NM / average_NM.sum(1, keepdim=True)
