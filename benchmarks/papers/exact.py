"""The closed forms that every way to a gradient is tried on, in whatever framework."""

import math

P, Y0, TOLERANCE = 0.3, 1.5, 1e-7
# Closed forms of the cases, where dy/dt = p·y: derivatives in y(0) and p of y(1), of y(0) from y(1), and of y(1)².
GROWN = math.exp(P)
END, BACK = (GROWN, Y0 * GROWN), (1 / GROWN, -Y0 / GROWN)
SQUARE = (2 * Y0 * GROWN**2, 2 * Y0**2 * GROWN**2)
HESSIAN = ((2 * GROWN**2, 4 * Y0 * GROWN**2), (4 * Y0 * GROWN**2, 4 * Y0**2 * GROWN**2))
# dy(1)/dt; of b(1) in p, where a = exp(pt) and b' = a; of the time at which y = 1.5 + 0.3 t is 2; of Im y0 exp(ip).
SLOPE, PARTS = P * Y0 * GROWN, ((P * GROWN - GROWN + 1) / P**2,)
CROSSING, TURNED = (-1 / P, -(2 - Y0) / P**2), (Y0 * math.cos(P),)
# The sum of the outputs at these times.
TIMES = (0.2, 0.5, 1.0)
OUTPUTS = sum(math.exp(P * t) for t in TIMES), sum(Y0 * t * math.exp(P * t) for t in TIMES)
