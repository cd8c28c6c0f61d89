"""Curvature of the probe's loss, as a fraction of what the optimizer's step bears; 1 is the edge.

All three are curvatures d^T H d / d^T D d along some direction d, D being the curvature at which a
step of the optimizer stops converging (`stability.py`). They hold for the loss of the probe; on few
samples it is sharper than that of the training. Products with H are two backward passes each, in
the graph of one forward pass that ends with the ProbePass.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from stabkit.monitor.blocks import exact
from stabkit.monitor.probe.probe import ProbePass
from stabkit.monitor.signals.signal import ProbeSignal, register_signal
from stabkit.monitor.signals.stability import Number, bearing_of_adam, bearing_of_sgd, owners


@register_signal
class GradientSharpness(ProbeSignal):
    """With SGD's momentum mu the limit is 2(1+mu)/lr, 2(1+mu)/(1+2mu)/lr if it is Nesterov's.

    Other optimizers are taken for SGD with their lr (and momentum, where they have one): a
    curvature to compare over time, not a distance to their edge. A group of lr 0 adds nothing.
    """

    name = "gradient_sharpness"
    level = "curvature"
    unit = "fraction of the limit"
    formula = "(g'Hg / g'g) lr/2, g the gradient of the probe's loss"
    source = "arXiv 2103.00065, section 2 and appendix B (momentum); arXiv 2506.04805"
    cost = "a forward, a backward and a product with the Hessian (2 more backwards) a probe"
    reveals = "plain steps along the gradient overshoot where it is above 1"
    needs = ("loss",)

    def measure(self, seen: ProbePass) -> Mapping[str, Tensor] | Tensor:
        loss, of = _loss_of(seen), owners(seen.optimizers)
        bearing = [bearing_of_sgd(of[p]) if p in of else None for p in loss.parameters]
        root = loss.root(bearing)
        return {} if root is None else _along(loss, root, root * loss.gradient)


@register_signal
class StepSharpness(ProbeSignal):
    """Nothing is measured before Adam's first step, and for optimizers without Adam's moments."""

    name = "step_sharpness"
    level = "curvature"
    unit = "fraction of the limit"
    formula = "(u'Hu / u'Pu) (1-beta1) lr / (2+2 beta1), u = P^-1 g, P = diag(sqrt(vhat)+eps)"
    source = "arXiv 2207.14484, section 2; arXiv 2506.04805"
    cost = "a product with the Hessian (2 backwards) a probe"
    reveals = "a spike begins where the curvature along Adam's own step crosses 1"
    needs = ("loss",)

    def measure(self, seen: ProbePass) -> Mapping[str, Tensor] | Tensor:
        loss = _loss_of(seen)
        root = _adam_root(seen, loss)
        return {} if root is None else _along(loss, root, root * loss.gradient)


@register_signal
class PreconditionedSharpness(ProbeSignal):
    """A lower bound that warms up: it is too low at first.

    Each probe raises it by two steps of Lanczos from the vector of the probe before. The first
    probe starts at the gradient, so the value is above `step_sharpness`. Warm and near the edge it
    reads at least 0.9 of the eigenvalue. Far below the edge, with small batches that turn the
    leading direction between probes, 0.5 to 0.85 were seen.

    Unlike a power iteration, this finds the largest eigenvalue even if a negative one is larger
    in size. Parameters that freeze are forgotten; ones that thaw start at the gradient.
    """

    name = "preconditioned_sharpness"
    level = "curvature"
    unit = "fraction of the limit"
    formula = "largest eigenvalue of P^-1 H, times (1-beta1) lr / (2+2 beta1)"
    source = "arXiv 2207.14484, section 2 (38/lr at beta1 = 0.9); arXiv 2606.16768 (warm start)"
    cost = "two products with the Hessian (4 backwards) a probe; a copy of the parameters"
    reveals = "hovers at 1 where Adam is at its edge of stability, surges with instabilities"
    needs = ("loss",)

    def __init__(self) -> None:
        self._vector: dict[Tensor, Tensor] = {}

    def measure(self, seen: ProbePass) -> Mapping[str, Tensor] | Tensor:
        loss = _loss_of(seen)
        root = _adam_root(seen, loss)
        if root is None:
            return {}
        gradient = _unit(root * loss.gradient)
        parts = zip(loss.parameters, loss.split(gradient), strict=True)
        start = torch.cat([self._vector.get(p, part).reshape(-1) for p, part in parts])
        # start anew from a vector lost to NaN, or one that lies where nothing steps; not at lr 0
        useful = start.isfinite().all() & ((start * root).any() | ~root.any())
        value, vector = _two_steps(loss, root, _unit(torch.where(useful, start, gradient)))
        self._vector = dict(zip(loss.parameters, loss.split(vector), strict=True))
        return value


class _Loss:
    """The probe's loss near the present weights. Vectors are flat, over all `parameters`."""

    def __init__(self, seen: ProbePass) -> None:
        assert seen.probe.loss is not None
        able = [p for p in seen.model.parameters() if p.requires_grad]
        # the fused kernels of attention have no second derivative
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            value = seen.probe.loss(seen.model)
            if value.numel() != 1 or not value.requires_grad:
                raise ValueError(
                    f"Probe.loss: gave a tensor of shape {list(value.shape)}, requires_grad="
                    f"{value.requires_grad}; it must be a scalar that depends on the parameters"
                )
            grads = torch.autograd.grad(value, able, create_graph=True, allow_unused=True)
        present = [(p, g) for p, g in zip(able, grads, strict=True) if g is not None]
        self.parameters: list[nn.Parameter] = [p for p, _ in present]
        self._grads = [g for _, g in present]
        double = any(g.dtype == torch.float64 for g in self._grads)
        self._dtype = torch.float64 if double else torch.float32
        self.gradient = self._flat(self._grads)

    def times_hessian(self, vector: Tensor) -> Tensor:
        """Return H v as the gradient of g'v (Pearlmutter 1994), two backward passes."""
        pairs = zip(self._grads, self.split(vector), strict=True)
        # a constant gradient does not depend on the weights and adds nothing
        pairs_on = [(g, v.to(g.dtype)) for g, v in pairs if g.requires_grad]
        if not pairs_on:
            return torch.zeros_like(vector)
        grads, vectors = zip(*pairs_on, strict=True)
        product = torch.autograd.grad(
            grads,
            self.parameters,
            vectors,
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return self._flat(product)

    def root(self, bearing: Sequence[Number | None]) -> Tensor | None:
        """Return sqrt of 1 / D, 0 where a parameter has none; None if none has one."""
        if all(b is None for b in bearing):
            return None
        full = [
            torch.zeros_like(p, dtype=self._dtype) + (0.0 if b is None else b)
            for p, b in zip(self.parameters, bearing, strict=True)
        ]
        return self._flat(full).sqrt_()

    def split(self, vector: Tensor) -> list[Tensor]:
        parts = torch.split(vector, [p.numel() for p in self.parameters])
        return [part.view(p.shape) for part, p in zip(parts, self.parameters, strict=True)]

    def _flat(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([t.detach().reshape(-1).to(self._dtype) for t in tensors])


def _loss_of(seen: ProbePass) -> _Loss:
    """Return the loss that all signals of a look share."""
    return seen.once("curvature", lambda: _Loss(seen))


def _adam_root(seen: ProbePass, loss: _Loss) -> Tensor | None:
    of = owners(seen.optimizers)
    return loss.root([bearing_of_adam(p, of[p]) if p in of else None for p in loss.parameters])


def _along(loss: _Loss, root: Tensor, direction: Tensor) -> Tensor:
    """Return the fraction of the limit along `root * direction`: q^T A q.

    A = root H root is symmetric and has the eigenvalues of D^-1 H. The result is 0 for a direction
    of length 0, as of a step at lr 0.
    """
    unit = _unit(direction)
    return unit @ (root * loss.times_hessian(root * unit))


def _two_steps(loss: _Loss, root: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest eigenvalue of A = root H root, and its vector, in a plane.

    The plane is spanned by `unit` and A `unit`: two steps of Lanczos.
    """
    image = root * loss.times_hessian(root * unit)
    a = unit @ image
    rest = image - a * unit
    rest -= (unit @ rest) * unit  # again, because rounding leaves a part along `unit`
    b = _norm(rest)
    other = _unit(rest)
    c = other @ (root * loss.times_hessian(root * other))
    # In the basis (unit, other) A is the matrix [[a, b], [b, c]]. Its larger eigenvalue is the mean
    # of a and c plus the hypotenuse; its vector is turned by half the angle of (half, b).
    half = (a - c) / 2
    value = (a + c) / 2 + torch.hypot(half, b)
    turn = torch.atan2(b, half) / 2
    vector = turn.cos() * unit + turn.sin() * other
    eigen = b == 0  # `unit` is an eigenvector
    return torch.where(eigen, a, value), torch.where(eigen, unit, vector)


def _norm(vector: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(exact(vector)).to(vector.dtype)
    return norm


def _unit(vector: Tensor) -> Tensor:
    """Return the vector with length 1; a zero vector stays zero."""
    norm = _norm(vector)
    return vector / torch.where(norm == 0, 1.0, norm)
