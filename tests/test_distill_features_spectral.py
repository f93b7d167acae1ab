import numpy as np
import pytest
import torch

from distill.features.spectral import SpectralFrames, windowed_dft


def test_the_matrix_product_is_the_fourier_transform():
    size = 64
    cosine, sine = windowed_dft(size)
    signal = torch.randn(size)
    window = np.hanning(size + 1)[:-1]
    expected = np.abs(np.fft.rfft(signal.numpy() * window)) ** 2 / (window**2).sum()
    np.testing.assert_allclose(
        ((signal @ cosine) ** 2 + (signal @ sine) ** 2).numpy(), expected, atol=1e-5
    )


def test_white_noise_has_power_one_at_every_frequency():
    cosine, sine = windowed_dft(64)
    noise = torch.randn(20_000, 64, generator=torch.Generator().manual_seed(0))
    power = ((noise @ cosine) ** 2 + (noise @ sine) ** 2).mean(0)
    # A real signal's power at frequency 0 and at half the rate is not split in two directions.
    torch.testing.assert_close(power[2:-2], torch.ones(29), atol=0.05, rtol=0)


def test_units_do_not_matter():
    windows = torch.randn(20, 2, 256)
    scaled = windows * torch.tensor([1e-4, 1e3])[:, None] + torch.tensor([1e-3, -200.0])[:, None]
    readings = []
    for these in (windows, scaled):
        frames = SpectralFrames(2, 256, 64, 8)
        frames.fit(these)
        readings.append(frames(these))
    torch.testing.assert_close(readings[0], readings[1], atol=2e-2, rtol=0)


def test_a_channel_that_never_moves_stays_finite_and_a_change_in_it_is_bounded():
    windows = torch.randn(20, 2, 256)
    windows[:, 1] = 21.5
    frames = SpectralFrames(2, 256, 64, 8)
    frames.fit(windows)
    assert frames(windows).isfinite().all()
    windows[:, 1, 100] = 1e6
    changed = frames(windows)
    assert changed.isfinite().all()
    assert changed.abs().max() <= 8.0


@pytest.mark.parametrize("samples", [8, 9, 31, 100, 2048, 50_001])
def test_windows_of_any_length_become_a_bounded_number_of_tokens(samples: int):
    frames = SpectralFrames(1, samples, 512, 8)
    features = frames(torch.randn(2, 1, samples))
    assert features.shape == (2, 1, frames.tokens, frames.size)
    assert frames.tokens <= 8
    assert features.isfinite().all()


def test_every_frame_counts_the_same_within_its_token():
    frames = SpectralFrames(1, 1000, 64, 8)
    average = frames.average_NM
    torch.testing.assert_close(average.sum(1), torch.ones(frames.tokens))
    assert (average > 0).sum(0).tolist() == [1] * average.shape[1]
