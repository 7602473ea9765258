"""Fits the polynomials of shaders/pointwise.wgsl (erf, exp, tanh, angle) and prints them with their f32 error."""

import math

import numpy as np
from numpy.polynomial import chebyshev, polynomial


def fit(f, low, high, degree):
    nodes = np.cos(np.pi * (np.arange(400) + 0.5) / 400)
    x = low + (high - low) * (nodes + 1) / 2
    series = chebyshev.Chebyshev.fit(x, [f(v) for v in x], degree, domain=[low, high])
    return series.convert(kind=polynomial.Polynomial).coef


def horner(coefficients, x):
    y = np.float32(coefficients[-1]) * np.ones_like(x)
    for c in coefficients[-2::-1]:
        y = (y * x + np.float32(c)).astype(np.float32)
    return y


near = fit(lambda s: math.erf(math.sqrt(s)) / math.sqrt(s) - 1, 1e-9, 1, 7)
far = fit(lambda a: math.log(math.erfc(a)), 1, 4, 8)
x = np.linspace(0, 4, 400_001).astype(np.float32)
exact = np.array([math.erf(float(v)) for v in x])
y = np.where(x < 1, x + x * horner(near, x * x), 1 - np.exp(horner(far, x)))
print("near", [float(f"{c:.9g}") for c in near])
print("far ", [float(f"{c:.9g}") for c in far])
print("largest error", np.abs(y - exact).max(), "relative below 1", (np.abs(y - exact)[1:100_000] / exact[1:100_000]).max())

print("exp ", [float(f"{c:.9g}") for c in fit(math.exp, -0.35, 0.35, 6)])
tanh = fit(lambda s: math.tanh(math.sqrt(s)) / math.sqrt(s) if s > 0 else 1.0, 1e-12, 0.4, 6)
x = np.linspace(1e-4, 0.63, 100_001).astype(np.float32)
exact = np.array([math.tanh(float(v)) for v in x])
print("tanh", [float(f"{c:.9g}") for c in tanh])
print("largest relative error of tanh below 0.63", (np.abs(x * horner(tanh, x * x) - exact) / exact).max())

angle = fit(lambda s: math.atan(math.sqrt(s)) / math.sqrt(s), 1e-12, 1, 9)
x = np.linspace(1e-4, 1, 100_001).astype(np.float32)
exact = np.arctan(x.astype(np.float64))
print("angle", [float(f"{c:.9g}") for c in angle])
print("largest relative error of the arc tangent below 1", (np.abs(x * horner(angle, x * x) - exact) / exact).max())
