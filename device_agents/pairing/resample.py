"""Readings at one rate become readings at another: numpy alone, kernels made once per ratio.

An output reading is a weighted sum of the input readings around its moment; the weights are a sinc
under a Kaiser window (Kaiser, "Nonrecursive digital filter design using the I0-sinh window
function", ISCAS 1974; the formulas below are those of Oppenheim and Schafer, "Discrete-Time Signal
Processing", section 7.6). With f the lower of the two Nyquist frequencies:

    passes   0 to 0.9 f   within 1e-4 of the amplitude, 80 dB
    stops    from f on    to 1e-4 of the amplitude: nothing folds back into the band

Between them lies the filter's slope; readings that were low-passed by the sensor's own converter
look alike. The first and last few readings of a window have no neighbours on one side: they are
made from mirrored ones (see `Resampler.margin`), unless the window is longer than what is cut.

The rates' ratio is taken as a fraction L/M of small whole numbers. Where there is none, one is
taken that moves a reading by at most half a reading of the input over the whole window.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

PASS_BAND = 0.9  # of the lower Nyquist frequency
STOP_DB = 80.0
_CUT_OFF = (1.0 + PASS_BAND) / 2  # of the lower Nyquist frequency: the middle of the slope
_KAISER_BETA = 0.1102 * (STOP_DB - 8.7)
_COLUMNS = 32  # output readings made by one product: fewer waste its set-up
# Products of at most so many multiplications: numpy's library gives larger ones to several
# threads, and where the cores are busy with inference these wait for each other, many
# milliseconds for a tenth of one of work (seen with OpenBLAS, whose bound is 262,144).
_ONE_THREAD = 250_000


class Resampler:
    """Makes `samples` readings at one rate out of readings at another.

    Every L-th output reading has the same weights, M input readings on. A block of L of them (or a
    multiple, where L is small) is made by a few products, each of up to `_COLUMNS` readings.
    """

    def __init__(self, rate_in_hz: float, rate_out_hz: float, samples: int) -> None:
        self.samples = samples
        self.step = _step(rate_in_hz, rate_out_hz, samples)  # input readings per output reading
        self._widest = max(1.0, float(self.step))
        self.margin = math.ceil(_half_width() * self._widest)  # input readings used on either side
        groups = math.ceil(_COLUMNS / self.step.denominator)
        self._block = self.step.denominator * groups
        self._stride = self.step.numerator * groups  # input readings from one block to the next
        columns = np.arange(self._block)
        self._pieces = [
            self._piece(columns[first : first + _COLUMNS])
            for first in range(0, self._block, _COLUMNS)
        ]

    def resampled(self, values_CT: NDArray[np.float32], start: int) -> NDArray[np.float32]:
        """Return [C, samples]; the first output reading lies at input reading `start`."""
        channels, blocks = len(values_CT), math.ceil(self.samples / self._block)
        first = start - self.margin
        last_offset, last_kernel_WL = self._pieces[-1]
        last = first + (blocks - 1) * self._stride + last_offset + len(last_kernel_WL)
        around_CT = _stretch(values_CT, first, last)
        made_RL = np.concatenate(
            [
                _product(_windows(around_CT[:, offset:], blocks, self._stride, len(kernel)), kernel)
                for offset, kernel in self._pieces
            ],
            axis=1,
        )
        return np.ascontiguousarray(made_RL.reshape(channels, -1)[:, : self.samples])

    def _piece(self, columns_L: NDArray[np.intp]) -> tuple[int, NDArray[np.float32]]:
        """Return where these output readings' inputs begin in a block, and the weights [W, L]."""
        places_L = columns_L * float(self.step)
        offset = int(places_L[0])
        width = int(places_L[-1]) - offset + 2 * self.margin + 2
        inputs_W = np.arange(width) + offset - self.margin
        apart_WL = (inputs_W[:, None] - places_L[None, :]) / self._widest
        inside = np.clip(1.0 - (apart_WL / _half_width()) ** 2, 0.0, None)
        weights_WL = np.sinc(_CUT_OFF * apart_WL) * np.i0(_KAISER_BETA * np.sqrt(inside))
        weights_WL[np.abs(apart_WL) > _half_width()] = 0.0
        weights_WL /= weights_WL.sum(axis=0)  # a constant stays the constant it is
        return offset, weights_WL.astype(np.float32)


@lru_cache(maxsize=8)
def resampler_for(rate_in_hz: float, rate_out_hz: float, samples: int) -> Resampler:
    """Return the resampler for these rates, its kernel made at the first call."""
    return Resampler(rate_in_hz, rate_out_hz, samples)


def _windows(
    around_CT: NDArray[np.float32], blocks: int, stride: int, width: int
) -> NDArray[np.float32]:
    """Return [C * blocks, width]: of each channel, a window every `stride` readings."""
    channel, step = around_CT.strides
    windows_CBW = np.lib.stride_tricks.as_strided(
        around_CT, (len(around_CT), blocks, width), (channel, step * stride, step), writeable=False
    )
    # A copy without overlaps is what the product's library takes at full speed.
    return np.ascontiguousarray(windows_CBW).reshape(-1, width)


def _product(rows_RW: NDArray[np.float32], kernel_WL: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the matrix product, in portions that stay on this thread."""
    portions = math.ceil(len(rows_RW) * kernel_WL.size / _ONE_THREAD)
    portion = math.ceil(len(rows_RW) / portions)  # alike: a last one of one row is slow
    made_RL = np.empty((len(rows_RW), kernel_WL.shape[1]), dtype=np.float32)
    for first in range(0, len(rows_RW), portion):
        np.matmul(rows_RW[first : first + portion], kernel_WL, out=made_RL[first : first + portion])
    return made_RL


def _half_width() -> float:
    """Half the filter's length, in readings of the lower rate: Kaiser's estimate."""
    slope = math.pi * (1.0 - PASS_BAND)
    return (STOP_DB - 7.95) / (2.285 * slope) / 2


def _step(rate_in_hz: float, rate_out_hz: float, samples: int) -> Fraction:
    """Return the input readings per output reading, with the smallest denominator that will do."""
    exact = Fraction(rate_in_hz) / Fraction(rate_out_hz)
    bound = 1
    while True:
        step = exact.limit_denominator(bound)
        if abs(step - exact) * samples <= 1 or bound >= samples:
            return step
        bound *= 2


def _stretch(values_CT: NDArray[np.float32], first: int, last: int) -> NDArray[np.float32]:
    """Return readings `first` to `last`; what lies outside is mirrored at the window's ends."""
    readings = values_CT.shape[1]
    if first >= 0 and last <= readings:
        return np.ascontiguousarray(values_CT[:, first:last])
    index = np.abs(np.arange(first, last))
    turn = max(1, 2 * (readings - 1))
    index %= turn
    index = np.minimum(index, turn - index)
    return np.ascontiguousarray(values_CT[:, np.minimum(index, readings - 1)])
