"""What ``test_jax_net`` draws: a structure by its seed, and the program for it, by the host's adjoint and by ours."""

import contextlib
import dataclasses
import functools
import random
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import lineax
import numpy as np
import optimistix

from steptape.jax import AdaptiveCheckpointAdjoint
from steptape_helpers.jax_solves import x64

EXPLICIT = ("Heun", "Midpoint", "Ralston", "Bosh3", "Tsit5", "Dopri5", "Dopri8")
ODE = {
    **{name: getattr(diffrax, name) for name in (*EXPLICIT, "Euler", "ReversibleHeun", "LeapfrogMidpoint")},
    **{name: getattr(diffrax, name) for name in ("ImplicitEuler", "Kvaerno3", "Kvaerno5")},
    "HalfSolver": lambda: diffrax.HalfSolver(diffrax.Bosh3()),
}
IMPLICIT = ("ImplicitEuler", "Kvaerno3", "Kvaerno5")
FIXED = ("Euler", "LeapfrogMidpoint")
SDE = {
    **{name: getattr(diffrax, name) for name in ("Heun", "Tsit5", "ReversibleHeun", "EulerHeun", "ItoMilstein")},
    **{name: getattr(diffrax, name) for name in ("StratonovichMilstein", "SPaRK", "ShARK", "SRA1", "SEA", "SlowRK")},
}
ADDITIVE = ("ShARK", "SRA1", "SEA")
AREA = (*ADDITIVE, "SPaRK", "SlowRK")
ADJOINTS: dict[str, dict] = {
    "default": {},
    "one": {"checkpoints": 1},
    "few": {"checkpoints": 3},
    "stage": {"graph": "stage"},
    "few, stage": {"checkpoints": 5, "graph": "stage"},
}
# With these, and no root, a solve by an explicit method has a Hessian.
KNOWN = ("constant", "step to", "pid")
MAX_STEPS = 24
EPS = {"float64": 2.3e-16, "float32": 1.2e-7}


@dataclasses.dataclass(frozen=True)
class Structure:
    """A program to be drawn."""

    seed: int
    kind: str  # ODE or SDE
    solver: str
    controller: str
    output: str
    event: str
    adjoint: str
    dtypes: str
    times: str  # traced, or numbers of Python
    backward: bool
    batch: bool
    second: bool

    @classmethod
    def drawn(cls, seed: int) -> "Structure":
        """The structure of ``seed``."""
        rng = random.Random(seed)
        kind = rng.choice(["ODE", "ODE", "ODE", "SDE"])
        solver = rng.choice(list(SDE if kind == "SDE" else ODE))
        fixed = kind == "SDE" or solver in FIXED
        controllers = ["constant", "step to"] if fixed else ["constant", "step to", "pid", "pid", "clipped", "limited"]
        if solver in IMPLICIT:
            controllers = ["pid", "clipped", "limited"]
        outputs = ["t1", "ts", "ts", "steps", "dense", "t0 and t1", "function", "several"]
        dtypes = ["float64", "float64", "float64", "float32", "float32", "float32 times", "trees", "no x64"]
        if kind == "ODE" and solver in EXPLICIT:
            dtypes.append("complex")
        if "Milstein" in solver:
            dtypes = ["float64"]  # diffrax's own are not for single precision where JAX knows double.
        dense = solver not in ("LeapfrogMidpoint",)
        controller, output = rng.choice(controllers), rng.choice(outputs)
        event = rng.choice(["none", "none", "none", "step", "root"]) if kind == "ODE" and dense else "none"
        return cls(
            seed,
            kind,
            solver,
            controller,
            output,
            event,
            rng.choice(list(ADJOINTS)),
            rng.choice(dtypes),
            rng.choice(["traced", "traced", "traced", "numbers"]),
            rng.random() < 0.25,
            rng.random() < 0.25,
            rng.random() < 0.2 and solver in EXPLICIT and controller in KNOWN and event != "root",
        )

    @property
    def of_t(self) -> str:
        """The dtype of times."""
        return "float32" if self.dtypes in ("float32", "float32 times", "no x64") else "float64"

    @property
    def of_y(self) -> str:
        """The dtype of the state."""
        return {"float32": "float32", "no x64": "float32", "complex": "complex128"}.get(self.dtypes, "float64")

    @contextlib.contextmanager
    def dtypes_known(self) -> Any:
        """Where JAX knows the dtypes of the structure, and promotes none."""
        known = contextlib.nullcontext() if self.dtypes == "no x64" else x64()
        with known, jax.numpy_dtype_promotion("strict"):
            yield


class Ran(NamedTuple):
    """The leaves of a solution, and gradients by name."""

    solution: Any
    gradients: dict[str, Any]


def tolerance(s: Structure, name: str, late: float) -> float:
    """Relative: rounding, times what some forty evaluations and the field's slope make of it.

    The times are those of the forward pass to the bit, so how ``late`` they are plays no part: a time that is an ulp
    off at t = 1000 changes sin(30 t) by 2e-3 in single precision. But for the derivatives in the times under a
    controller that adapts: by what factor a step follows from the one before is known from the times, of which steps
    are differences, to an ulp of t over the size of a step. The iterations of an implicit solver are replayed to
    rounding as well, times the condition of its Jacobian.
    """
    eps = EPS["float32" if "float32" in (s.of_t, s.of_y) else "float64"]
    factor = 5e5 if s.solver in IMPLICIT else 5e3
    if s.controller in ("pid", "clipped", "limited") and name.removeprefix("second in ") in ("t0", "t1", "dt0"):
        factor += 1e3 * abs(late)
    return eps * factor


def _field(t, y, args):
    """A rotation whose angle turns with t, damped; ``y`` is a dict of a leaf of two numbers and one of one."""
    a, b = y["a"], y["b"]
    k = args["used"]
    wave = jnp.sin(args["turns"] * t + k[0]).astype(b.real.dtype)
    real = [x.astype(b.real.dtype) for x in k]
    turned = jnp.stack([a[1], -a[0]])
    return {
        "a": (wave * turned + real[1] * jnp.tanh(b) * a).astype(a.dtype) - 0.5 * a,
        "b": (real[2] * wave - b * real[3] ** 2 + 0.1 * (jnp.sum(a) ** 2).astype(b.dtype)).astype(b.dtype),
    }


def _flat_field(t, y, args):
    """The same of a vector."""
    slope = _field(t, {"a": y[:2], "b": y[2:]}, args)
    return jnp.concatenate([slope["a"], slope["b"]])


def _terms(s: Structure, t0, t1, key):
    if s.kind == "ODE":
        return diffrax.ODETerm(_field)
    area = {} if s.solver not in AREA else {"levy_area": diffrax.SpaceTimeLevyArea}
    low, high = (jax.lax.stop_gradient(x) for x in (jnp.minimum(t0, t1), jnp.maximum(t0, t1)))
    shape = jax.ShapeDtypeStruct((3,), s.of_y)
    path = diffrax.VirtualBrownianTree(low, high, (high - low) / 200, shape, jax.random.key(key), **area)

    def noise(t, y, args):
        scale = 0.3 * args["used"][3].astype(y.dtype)
        return lineax.DiagonalLinearOperator(scale * (jnp.ones_like(y) if s.solver in ADDITIVE else y))

    return diffrax.MultiTerm(diffrax.ODETerm(_flat_field), diffrax.ControlTerm(noise, path))


def _controller(s: Structure, t0, t1):
    loose = {"rtol": 1e-2, "atol": 1e-2}
    at = jax.lax.stop_gradient(t0 + 0.37 * (t1 - t0))
    if s.controller == "step to":
        grid = t0 + (t1 - t0) * jnp.asarray(np.linspace(0, 1, 9) ** 1.3, s.of_t)
        return diffrax.StepTo(grid.at[-1].set(t1))
    if s.controller == "clipped":
        return diffrax.ClipStepSizeController(diffrax.PIDController(**loose), step_ts=at[None])
    if s.controller == "limited":
        return diffrax.PIDController(**loose, dtmin=1e-3, dtmax=0.2)
    return diffrax.ConstantStepSize() if s.controller == "constant" else diffrax.PIDController(**loose)


def _saveat(s: Structure, t0, t1):
    ts = t0 + (t1 - t0) * jnp.asarray([0.0, 0.31, 0.32, 0.8, 1.0], s.of_t)
    ts = ts.at[-1].set(t1)

    def function(t, y, args):
        a = y if s.kind == "SDE" else y["a"]
        return jnp.sum(a) * args["used"][1].astype(a.dtype), t

    return {
        "t1": lambda: diffrax.SaveAt(t1=True),
        "ts": lambda: diffrax.SaveAt(ts=ts),
        "steps": lambda: diffrax.SaveAt(steps=2, t1=True),
        "dense": lambda: diffrax.SaveAt(dense=True),
        "t0 and t1": lambda: diffrax.SaveAt(t0=True, t1=True),
        "function": lambda: diffrax.SaveAt(ts=ts[1:3], t1=True, fn=function),
        "several": lambda: diffrax.SaveAt(
            subs=[diffrax.SubSaveAt(ts=ts[1:4]), diffrax.SubSaveAt(steps=True, fn=function)]
        ),
    }[s.output]()


def _event(s: Structure):
    if s.event == "none":
        return None

    def met(t, y, args, **kwargs):
        return y["b"].real.reshape(()) - 0.4 * args["used"][0].astype(y["b"].real.dtype) - 0.4

    if s.event == "step":
        return diffrax.Event(lambda t, y, args, **kwargs: met(t, y, args) > 0)
    tight = 1e-5 if "float32" in (s.of_t, s.of_y) else 1e-10
    return diffrax.Event(met, optimistix.Newton(tight, tight))


def _solve(s: Structure, inputs, adjoint):
    y0, args, t0, t1, dt0, key = (inputs[name] for name in ("y0", "args", "t0", "t1", "dt0", "key"))
    solution = diffrax.diffeqsolve(
        _terms(s, t0, t1, key),
        (SDE if s.kind == "SDE" else ODE)[s.solver](),
        t0,
        t1,
        None if s.controller == "step to" else dt0,
        y0,
        args,
        saveat=_saveat(s, t0, t1),
        stepsize_controller=_controller(s, t0, t1),
        event=_event(s),
        adjoint=adjoint,
        max_steps=MAX_STEPS,
        throw=False,
    )
    out = (solution.ts, solution.ys)
    if s.output == "dense":
        out = solution.evaluate(t0 + 0.45 * (t1 - t0)), solution.evaluate(t1)
    leaves = jax.tree.leaves(out)
    widest = "float32" if s.dtypes == "no x64" else "float64"
    total = sum(jnp.sum(jnp.where(jnp.isfinite(x), jnp.sin(x), 0).real.astype(widest)) for x in leaves)
    return total, (leaves, solution.stats["num_steps"], solution.stats["num_accepted_steps"])


def _inputs(s: Structure, values: dict) -> dict:
    """Arrays of the structure's dtypes."""
    sign = -1 if s.backward else 1
    t0 = values["far"] + values["t0"]
    t1 = t0 + sign * values["span"]
    a, b = np.array(values["y0"][:2]), np.array(values["y0"][2:])
    if s.of_y == "complex128":
        a, b = a + 0.3j * a[::-1], b - 0.2j
    leaf = {"trees": "float32"}.get(s.dtypes, s.of_y)
    tree = {"a": jnp.asarray(a, s.of_y), "b": jnp.asarray(b, leaf)}
    return {
        "y0": jnp.concatenate([jnp.asarray(x, s.of_y) for x in (a, b)]) if s.kind == "SDE" else tree,
        "args": {
            "used": [jnp.asarray(x, s.of_t) for x in values["args"]],
            "turns": jnp.asarray(values["turns"] * 6, s.of_t),
            "unused": jnp.ones(2, s.of_t),
            "count": np.int32(3),
            "none": None,
        },
        "t0": jnp.asarray(t0, s.of_t),
        "t1": jnp.asarray(t1, s.of_t),
        "dt0": jnp.asarray(sign * 0.06, s.of_t),
        "key": values["key"],
    }


def _differentiated(s: Structure, inputs: dict, adjoint: Any) -> tuple:
    """The gradient by name, and the solution; with ``second``, a second derivative along the gradient of a sum."""
    # diffrax's Brownian paths have no derivative in time.
    times = ("t0", "t1", "dt0") if s.times == "traced" and s.kind == "ODE" else ()
    names = ("y0", "used", "turns", *times)

    def total(moving):
        args = {**inputs["args"], "used": moving["used"], "turns": moving["turns"]}
        given = {name: moving[name] for name in ("y0", "t0", "t1", "dt0") if name in moving}
        return _solve(s, {**inputs, "args": args, **given}, adjoint)

    moving = {n: inputs["args"][n] if n in inputs["args"] else inputs[n] for n in names}
    gradient = jax.grad(total, has_aux=True)
    found, solution = gradient(moving)
    if s.second:
        along = jax.tree.map(jnp.ones_like, moving)
        pushed = jax.jvp(lambda moving: gradient(moving)[0], (moving,), (along,))[1]
        found = {**found, **{f"second in {name}": g for name, g in pushed.items()}}
    return found, solution


@functools.lru_cache(maxsize=1)
def compiled(s: Structure) -> Any:
    """The program of a structure: values to ours, the host's, and the solution undifferentiated."""
    ours = AdaptiveCheckpointAdjoint(**ADJOINTS[s.adjoint])
    direct = diffrax.DirectAdjoint()
    if not s.second:
        direct = diffrax.RecursiveCheckpointAdjoint(checkpoints=MAX_STEPS)

    def program(adjoint, inputs):
        def one(inputs):
            return _differentiated(s, inputs, adjoint)

        return jax.vmap(one)(inputs) if s.batch else one(inputs)

    def plain(inputs):
        def one(inputs):
            return _solve(s, inputs, direct)[1]

        return jax.vmap(one)(inputs) if s.batch else one(inputs)

    both = jax.jit(lambda inputs: (program(ours, inputs), program(direct, inputs)))
    alone = jax.jit(plain)

    def run(values):
        with s.dtypes_known():
            inputs = _inputs(s, values)
            if s.batch:
                rows = [values, {**values, "y0": values["y0"][::-1], "span": 0.6}, {**values, "turns": 2.0}]
                inputs = jax.tree.map(lambda *x: jnp.stack(x), *(_inputs(s, row) for row in rows))
            (found, solution), (want, host) = jax.tree.map(np.asarray, both(inputs))
            solution, host = jax.tree.leaves(solution), jax.tree.leaves(host)
            # XLA may round another program otherwise, so that the host's own depends on whether it is differentiated.
            if not same(solution, host):
                host = [np.asarray(x) for x in jax.tree.leaves(alone(inputs))]
        return Ran(solution, _leaves(found)), Ran(host, _leaves(want))

    return run


def same(ours: list, host: list) -> bool:
    """Whether two lists of arrays are the same, bit for bit."""
    return all(np.array_equal(x, y, equal_nan=True) for x, y in zip(ours, host, strict=True))


def _leaves(gradients):
    return {n: np.concatenate([np.ravel(x).astype(complex) for x in jax.tree.leaves(g)]) for n, g in gradients.items()}
