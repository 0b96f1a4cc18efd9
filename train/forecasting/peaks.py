"""Published figures of devices, which no program reaches."""

import math
from typing import NamedTuple

from moe_jax.base.checks import nearest

FIELDS = 4  # numbers that describe a device: FLOP/s, bytes, bytes/s of memory, bytes/s sent


class Peaks(NamedTuple):
    """One device: FLOP/s of matrix products in bfloat16 and in float32 (at XLA's default
    precision), bytes of memory, bytes/s of memory, and bytes/s it can send to other devices.

    copies: how many copies of the trained parameters XLA makes there to update them.
    """

    name: str
    flops: float
    flops_float32: float
    memory: float
    bandwidth: float
    link: float
    copies: int = 0


# Dense figures, without sparsity. TPU: Google Cloud's pages 'TPU v5e', 'TPU v5p' and 'TPU v6e'; the
# interconnect is given per chip for both directions and halved here; float32 products are made of
# bfloat16 ones. GPU: NVIDIA's data sheets of the A100 80GB SXM, H100 SXM and H200 SXM; TF32 for
# float32; NVLink is given for both directions and halved here. Links between hosts are slower than
# these. cpu: assumed, two cores of a laptop; that a step holds one copy more of what trains was
# measured.
PEAKS = {peaks.name: peaks for peaks in (
    Peaks('v5e', 197e12, 197e12, 16e9, 819e9, 200e9),
    Peaks('v5p', 459e12, 459e12, 95e9, 2765e9, 600e9),
    Peaks('v6e', 918e12, 918e12, 32e9, 1640e9, 400e9),
    Peaks('a100', 312e12, 156e12, 80e9, 2039e9, 300e9),
    Peaks('h100', 989e12, 495e12, 80e9, 3350e9, 450e9),
    Peaks('h200', 989e12, 495e12, 141e9, 4800e9, 450e9),
    Peaks('cpu', 1e11, 1e11, 16e9, 40e9, 10e9, copies=1),
)}


def peaks_of(text: str) -> Peaks:
    """The device of a name of `PEAKS`, or of four numbers such as '1e15,8e10,3e12,4e11'.

    These are FLOP/s, bytes, bytes/s of memory, bytes/s sent. Raises ValueError for anything else.
    """
    if text in PEAKS:
        return PEAKS[text]
    parts = text.split(',')
    if len(parts) == 1:
        raise ValueError(f'no device {text!r}; {nearest(text, list(PEAKS))}, or four numbers: '
                         'FLOP/s, bytes of memory, bytes/s of memory, bytes/s sent')
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) != FIELDS or not all(0 < part < math.inf for part in numbers):
        raise ValueError(f'{text!r}: give four positive numbers: FLOP/s, bytes of memory, bytes/s '
                         'of memory, bytes/s sent, such as 1e15,8e10,3e12,4e11')
    flops, memory, bandwidth, link = numbers
    return Peaks(text, flops, flops, memory, bandwidth, link)
