"""Products of signals on the sphere as products of Fourier series in two angles."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from eqk._signals import lmax_of
from eqk.reference.spherical_harmonics import spherical_harmonics


def fourier_coefficients(lmax: int) -> Tensor:
    """The series of harmonics of degrees 0 to ``lmax``: [2 lmax + 1, 2 lmax + 1, (lmax + 1)^2], complex128.

    Entry (u, v, n), u and v from -lmax to lmax, multiplies e^(i (u beta + v alpha)) in the orthonormal real harmonic n
    at (sin beta sin alpha, cos beta, sin beta cos alpha), which is a polynomial of the sines and cosines of both angles
    on the whole torus, beta from 0 to 2 pi.
    """
    points = 2 * lmax + 1
    angles = torch.arange(points, dtype=torch.float64) * (2 * math.pi / points)
    beta, alpha = torch.meshgrid(angles, angles, indexing="ij")
    r = torch.stack([beta.sin() * alpha.sin(), beta.cos(), beta.sin() * alpha.cos()], -1)
    y = spherical_harmonics(range(lmax + 1), r.flatten(0, 1), "integral").unflatten(0, (points, points))
    return torch.fft.fftshift(torch.fft.fft2(y, dim=(0, 1), norm="forward"), dim=(0, 1))


def fourier_projections(lmax: int, degree: int) -> Tensor:
    """Integrals over the sphere of e^(i (u beta + v alpha)) times harmonics, u and v from -degree to degree.

    [2 degree + 1, 2 degree + 1, (lmax + 1)^2], complex128. Those of beta, with its sin(beta), are over half a period:
    of e^(i n beta) from 0 to pi, pi for n = 0, 2 i / n for odd n and 0 for even n.
    """
    series = fourier_coefficients(lmax)
    result = torch.zeros(2 * degree + 1, 2 * degree + 1, (lmax + 1) ** 2, dtype=torch.complex128)

    def half_period(n: int) -> complex:
        return math.pi if n == 0 else 2j / n if n % 2 else 0

    of_beta = torch.tensor(
        [
            [(half_period(u + k + 1) - half_period(u + k - 1)) / 2j for k in range(-lmax, lmax + 1)]
            for u in range(-degree, degree + 1)
        ],
        dtype=torch.complex128,
    )
    for v in range(-min(lmax, degree), min(lmax, degree) + 1):
        result[:, v + degree] = 2 * math.pi * of_beta @ series[:, lmax - v]
    return result


def gaunt_product_by_fourier(x: Tensor, y: Tensor, lmax_out: int | None = None) -> Tensor:
    """``eqk.gaunt_product(x, y, lmax_out)`` by Fourier series in beta and alpha, which a convolution multiplies.

    Harmonics to coefficients (u, v) of each signal, their convolution by ``torch.fft`` on a torus of
    2 (lmax1 + lmax2) + 1 points each way, and its projection to harmonics. (Luo, Chen & Krishnapriyan 2024,
    arXiv:2401.10216.)

    Args:
        x: [..., (lmax1 + 1)^2, channels], float32 or float64.
        y: [..., (lmax2 + 1)^2, channels], the same or 1 in each dimension but the components.
        lmax_out: largest degree of the result; that of x by default.

    Returns:
        [..., (lmax_out + 1)^2, channels]
    """
    lmax1, lmax2 = lmax_of(x.shape[-2]), lmax_of(y.shape[-2])
    degree = lmax1 + lmax2
    points = 2 * degree + 1
    complex_dtype = torch.promote_types(x.dtype, torch.complex64)
    on_torus = 1
    for signal, lmax in ((x, lmax1), (y, lmax2)):
        to = fourier_coefficients(lmax).to(x.device, complex_dtype)
        series = torch.einsum("uvn,...nc->...cuv", to, signal.to(complex_dtype))
        # Coefficients from -lmax are from 0 here: of the product, from -degree.
        on_torus = on_torus * torch.fft.ifft2(series, s=(points, points), norm="forward")
    product = torch.fft.fft2(on_torus, norm="forward")
    back = fourier_projections(lmax1 if lmax_out is None else lmax_out, degree).to(x.device, complex_dtype)
    return torch.einsum("uvn,...cuv->...nc", back, product).real
