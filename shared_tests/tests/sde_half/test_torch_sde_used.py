"""Where a call names no parameters, it is differentiated in every tensor that sde uses, as by back-propagation."""

import functools

import pytest
import torch
import torchsde

from steptape import GradientError
from steptape.torch import sdeint_adjoint
from steptape_helpers.torch_solves import assert_same, gradients_of

TS = torch.tensor([0.0, 0.2, 0.5], dtype=torch.float64)
Y0 = torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3)
SOLVES = {
    "euler": ("ito", {"method": "euler"}, {}),
    "euler, checkpoints": ("ito", {"method": "euler"}, {"checkpoints": 2}),
    "milstein": ("ito", {"method": "milstein"}, {}),
    "srk": ("ito", {"method": "srk"}, {}),
    "heun": ("stratonovich", {"method": "heun"}, {}),
    "reversible_heun": ("stratonovich", {"method": "reversible_heun"}, {}),
    "adaptive": ("ito", {"method": "srk", "adaptive": True, "rtol": 1e-2, "atol": 1e-2}, {}),
}


class Sde:
    """No module: drift and diffusion refer to leaves and to what was computed from them."""

    noise_type = "diagonal"

    def __init__(self, sde_type):
        torch.manual_seed(0)
        self.sde_type = sde_type
        self.W = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
        self.scale = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        self.net = torch.nn.Linear(3, 3, dtype=torch.float64)
        self.leaves = (self.W, self.scale, *self.net.parameters())

    def f(self, t, y):
        return self.net(y).tanh() @ self.W

    def g(self, t, y):
        return self.scale * y.sin()


class Context(Sde):
    """Computed before the solve, from a leaf that is used as well."""

    def __init__(self, sde_type):
        super().__init__(sde_type)
        self.context = (self.W * self.scale).sin()

    def f(self, t, y):
        return self.net(y).tanh() @ self.context @ self.W


class Kept(Sde):
    """Computed by the first evaluation, for all others."""

    A = None

    def f(self, t, y):
        if self.A is None:
            self.A = (self.W - self.W.T).tanh()
        return self.net(y).tanh() @ self.A


class Potential(Sde):
    """The drift is a gradient."""

    def f(self, t, y):
        if not y.requires_grad:
            y = y.detach().requires_grad_()
        return -torch.autograd.grad(self.net(y @ self.W).tanh().sum(), y, create_graph=True)[0]


class Hooked(Sde):
    """Halves the cotangent on its way."""

    def f(self, t, y):
        h = self.net(y)
        h.register_hook(lambda g: 0.5 * g)
        return h.tanh() @ self.W


def gradients(make, sdeint, sde_type, second=False, **call):
    sde, y0 = make(sde_type), Y0.clone().requires_grad_()
    bm = torchsde.BrownianInterval(
        0.0, 0.5, size=(2, 3), dtype=torch.float64, entropy=1, levy_area_approximation="foster"
    )
    ys = sdeint(sde, y0, TS, bm=bm, dt=0.05, **call)
    return gradients_of(ys[1:].square().sum(), (y0, *sde.leaves), second)


@pytest.mark.parametrize("solve", SOLVES)
@pytest.mark.parametrize("make", [Sde, Context, Kept, Potential, Hooked])
def test_equal_to_back_propagation(make, solve):
    sde_type, call, adjoint_options = SOLVES[solve]
    found = gradients(make, sdeint_adjoint, sde_type, **call, adjoint_method="aca", adjoint_options=adjoint_options)
    assert_same(found, gradients(make, torchsde.sdeint, sde_type, **call))


@pytest.mark.parametrize("make", [Sde, Context, Kept, Potential, Hooked])
def test_second_derivatives(make):
    found = gradients(make, sdeint_adjoint, "ito", second=True, method="euler", adjoint_method="aca")
    assert_same(found, gradients(make, torchsde.sdeint, "ito", second=True, method="euler"), 1e-11)


class Sparse(Sde):
    """The drift is by a sparse tensor, of which the gradient is dense."""

    def __init__(self, sde_type, layout):
        super().__init__(sde_type)
        matrix = self.W.detach().tril()
        self.S = (matrix.to_sparse_csr() if layout == "csr" else matrix.to_sparse()).requires_grad_()
        self.leaves = (self.S, self.scale, *self.net.parameters())

    def f(self, t, y):
        return (self.S @ self.net(y).T).T.tanh()


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("layout", ["coo", "csr"])
@pytest.mark.parametrize("keep", [{}, {"checkpoints": 2}, {"memory": "graphs"}])
def test_of_a_sparse_tensor(keep, layout, second):
    make = functools.partial(Sparse, layout=layout)
    call = {"second": second, "method": "milstein"}
    found = gradients(make, sdeint_adjoint, "ito", **call, adjoint_method="aca", adjoint_options=keep)
    assert_same(found, gradients(make, torchsde.sdeint, "ito", **call), 1e-11)


def test_solves_in_a_closed_loop():
    def solved(sdeint, **adjoint):
        sde, y = Sde("ito"), Y0
        plain = sde.f
        for i in range(3):
            u = sde.scale * (y @ sde.W).tanh()
            sde.f = lambda t, y, u=u: plain(t, y + u)
            bm = torchsde.BrownianInterval(0.0, 0.5, size=(2, 3), dtype=torch.float64, entropy=i)
            y = sdeint(sde, y, TS, bm=bm, dt=0.1, method="euler", **adjoint)[-1]
        return torch.autograd.grad(y.square().sum(), sde.leaves)

    assert_same(solved(sdeint_adjoint, adjoint_method="aca"), solved(torchsde.sdeint))


@pytest.mark.parametrize("checkpoints", [None, 2])
@pytest.mark.parametrize("method", ["heun", "euler_heun"])
def test_features_kept_for_a_time_are_refused(method, checkpoints):
    """They are computed anew at the next time, without a graph."""

    class Features(Sde):
        t, features = None, None

        def at(self, t):
            if self.t is None or float(t) != float(self.t):
                self.t, self.features = t, (self.W * t).sin()
            return self.features

        def f(self, t, y):
            return y @ self.at(t)

        def g(self, t, y):
            return self.at(t)[0] * y

    with pytest.raises(
        GradientError, match=r"^sdeint_adjoint.*computed a tensor of shape .*, which the next one used again"
    ):
        gradients(
            Features,
            sdeint_adjoint,
            "stratonovich",
            method=method,
            adjoint_method="aca",
            adjoint_options={"checkpoints": checkpoints},
        )
