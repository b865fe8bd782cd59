"""`SAM`: sharpness-aware minimization around any PyTorch optimizer, with the method names people know."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..errors import ArgumentError, NonFiniteError, StateError
from ..ops import sam_norm, sam_perturb

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class SAM(Optimizer):
    """Sharpness-aware minimization: descend by the gradient taken at the worst nearby weights.

        w' = w + ρ·g/‖g‖            g = ∇L(w), one norm over all parameters of all groups
        w  ← base optimizer's step from w with the gradient ∇L(w')

    adaptive (ASAM): w' = w + ρ·w²·g/‖w·g‖, which does not change when layers are rescaled (without the paper's
    optional offset η on |w|). Sources: Foret et al. 2021, arXiv 2010.01412, equation 2; Kwon et al. 2021,
    arXiv 2102.11600, equation 9 with T_w = |w|.

    Two passes a step, each a full forward and backward on the same batch::

        optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9, rho=0.05)
        loss_fn(model(x), y).backward()
        optimizer.first_step(zero_grad=True)
        loss_fn(model(x), y).backward()
        optimizer.second_step(zero_grad=True)

    or `optimizer.step(closure)`. With a gradient scaler (float16), let it unscale before the perturbation and let
    it take the base optimizer's step, so that an overflow in either pass skips the step and leaves the weights
    exactly as they were::

        scaler.scale(loss_fn(model(x), y)).backward()
        scaler.unscale_(optimizer)
        try:
            optimizer.first_step(zero_grad=True)
        except NonFiniteError:                      # overflow in the first pass: nothing was perturbed
            optimizer.zero_grad()
        else:
            scaler.scale(loss_fn(model(x), y)).backward()
            optimizer.restore()                     # back to w; the gradient taken at w' stays
            scaler.step(optimizer.base_optimizer)   # unscales; skips on overflow
        scaler.update()

    params: tensors or parameter groups (each may have its own `rho` and `adaptive`): float32, bfloat16 or float16,
    dense. base_optimizer: an optimizer class; the other keyword arguments are its own. `param_groups` and `state` are
    those of `base_optimizer`, so learning-rate schedulers work on either and `state_dict()` holds everything.

    The perturbed weights live in a second buffer, kept between steps (`parameter.data` points to it between the two),
    so that restoring w costs nothing and is exact. `first_step` waits for the device, to refuse a gradient that is
    not finite.

    Raises ArgumentError for a bad argument, StateError for steps out of order, NonFiniteError for NaN or infinity in
    a gradient (the weights are unchanged then).
    """

    def __init__(
        self, params: Any, base_optimizer: type[Optimizer], rho: float = 0.05, adaptive: bool = False, **kwargs: Any
    ) -> None:
        if not (isinstance(base_optimizer, type) and issubclass(base_optimizer, Optimizer)):
            raise ArgumentError(
                f"base_optimizer is {base_optimizer!r}; expected an optimizer class, e.g. torch.optim.SGD"
            )
        self._originals: dict[Tensor, Tensor] = {}  # parameter -> its weights w, while it holds w'
        self._buffers: dict[Tensor, Tensor] = {}  # parameter -> memory for w', kept between steps
        self._perturbed = False
        super().__init__(params, {"rho": rho, "adaptive": adaptive, **kwargs})
        self.base_optimizer = base_optimizer(self.param_groups, **kwargs)
        self._share()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, with its own `rho` and `adaptive` if it names them."""
        _check_group(param_group, self.defaults)
        if "base_optimizer" not in self.__dict__:  # the groups of the constructor
            super().add_param_group(param_group)
            return
        self.base_optimizer.add_param_group(_with_defaults(param_group, self.defaults))

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        """Move every parameter that has a gradient to its perturbed weights w'."""
        self._expect(perturbed=False, method="first_step")
        active = [(group, p, p.grad) for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not active:
            raise StateError("first_step found no gradient on any parameter; call loss.backward() before it")
        norm = self._norm(active)
        self._perturbed = True
        try:
            for group, p, gradient in active:
                buffer = self._buffer(p)
                _perturb(p, gradient, group, norm.to(p.device), buffer)
                self._originals[p] = p.data
                _replace(p, buffer)
        except BaseException:  # memory for a buffer ran out, say
            self.restore()
            raise
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def restore(self) -> None:
        """Bring back the weights w, bit for bit, without a step; the gradients stay."""
        self._expect(perturbed=True, method="restore")
        for p, original in self._originals.items():
            _replace(p, original)
        self._originals.clear()
        self._perturbed = False
        self._opt_called = True  # what schedulers look for: a step is taken by second_step or the caller

    @torch.no_grad()
    def second_step(self, zero_grad: bool = False) -> None:
        """Restore the weights w and take the base optimizer's step with the gradients taken at w'."""
        self._expect(perturbed=True, method="second_step")
        self.restore()
        self.base_optimizer.step()
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one whole step; `closure` does a full forward and backward pass and returns the loss.

        If no parameter has a gradient yet, or all are zero, the closure is called for the first pass too. Gradients
        are cleared before the second pass and at the end, so that none is used twice. Returns the loss at w, or that
        at w' if the first gradient was there already. If the closure raises at w', the weights w come back before the
        error.
        """
        if closure is None:
            raise ArgumentError("step needs a closure that does a full forward-backward pass; without one call"
                                " first_step and second_step")  # fmt: skip
        self._expect(perturbed=False, method="step")
        closure = torch.enable_grad()(closure)
        parameters = [p for group in self.param_groups for p in group["params"]]
        has_gradient = any(p.grad is not None and (p.grad.is_sparse or bool(p.grad.any())) for p in parameters)
        loss = None if has_gradient else closure()
        self.first_step(zero_grad=True)
        try:
            perturbed_loss = closure()
        except BaseException:
            self.restore()
            raise
        self.second_step(zero_grad=True)
        return perturbed_loss if loss is None else loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict()` gave: the groups with their options, and the base optimizer's state."""
        self._expect(perturbed=False, method="load_state_dict")
        self.base_optimizer.load_state_dict(state_dict)
        for group in self.base_optimizer.param_groups:  # of a state saved by the base optimizer alone
            group.setdefault("rho", self.defaults["rho"])
            group.setdefault("adaptive", self.defaults["adaptive"])
        self._share()

    def __getstate__(self) -> dict[str, Any]:
        self._expect(perturbed=False, method="copy or pickle")
        return {**super().__getstate__(), "base_optimizer": self.base_optimizer}  # type: ignore[misc]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_originals", {})
        self.__dict__.setdefault("_buffers", {})
        self.__dict__.setdefault("_perturbed", False)

    def _share(self) -> None:
        self.param_groups = self.base_optimizer.param_groups
        self.state = self.base_optimizer.state
        self.defaults.update({k: v for k, v in self.base_optimizer.defaults.items() if k not in self.defaults})

    def _expect(self, *, perturbed: bool, method: str) -> None:
        if self._perturbed == perturbed:
            return
        if perturbed:
            raise StateError(f"{method} was called before first_step; the weights are not perturbed")
        raise StateError(f"{method} was called while the weights are perturbed; call second_step or restore first")

    def _buffer(self, p: Tensor) -> Tensor:
        """Return memory for the perturbed weights of `p`: last step's, unless `p` was cast, moved or resized."""
        buffer = self._buffers.get(p)
        if buffer is None or (buffer.shape, buffer.dtype, buffer.device) != (p.shape, p.dtype, p.device):
            buffer = self._buffers[p] = torch.empty_like(p.data)
        return buffer

    def _norm(self, active: list[tuple[dict[str, Any], Tensor, Tensor]]) -> Tensor:
        """Return the norm over all gradients as float32 [1], or raise NonFiniteError naming the first bad one."""
        home = active[0][1].device
        norms = torch.cat([_parameter_norm(p, gradient, group).to(home) for group, p, gradient in active])
        norm = torch.linalg.vector_norm(norms, dtype=torch.float64).float().view(1)
        if not math.isfinite(norm.item()):
            bad = [i for i, value in enumerate(norms.tolist()) if not math.isfinite(value)]
            where = self._name(active[bad[0]][1]) if bad else "all parameters together"
            raise NonFiniteError(f"the gradient of {where} is not finite in float32; the weights are unchanged")
        return norm

    def _name(self, parameter: Tensor) -> str:
        for g, group in enumerate(self.param_groups):
            for i, p in enumerate(group["params"]):
                if p is parameter:
                    name = group["param_names"][i] if "param_names" in group else f"params[{i}]"
                    return f"param_groups[{g}] {name}, shape {tuple(p.shape)},"
        return "a parameter"


def _with_defaults(group: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    return {"rho": defaults["rho"], "adaptive": defaults["adaptive"], **group}


def _check_group(group: dict[str, Any], defaults: dict[str, Any]) -> None:
    rho = group.get("rho", defaults["rho"])
    if isinstance(rho, bool) or not isinstance(rho, (int, float)) or not math.isfinite(rho) or rho < 0:
        raise ArgumentError(f"rho is {rho!r}; expected a finite number >= 0")
    adaptive = group.get("adaptive", defaults["adaptive"])
    if not isinstance(adaptive, bool):
        raise ArgumentError(f"adaptive is {adaptive!r}; expected True or False")


def _replace(p: Tensor, memory: Tensor) -> None:
    """Let a parameter have other weights, and let autograd know, as after any operation in place."""
    p.data = memory
    torch.autograd.graph.increment_version(p)


def _row(tensor: Tensor) -> Tensor:
    """View or copy a tensor as a row [1, n] in the order of its elements."""
    return tensor.detach().reshape(1, -1)


def _parameter_norm(p: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
    if p.dtype not in _DTYPES or gradient.dtype not in _DTYPES or gradient.is_sparse:
        kind = "sparse" if gradient.is_sparse else str(gradient.dtype)
        raise ArgumentError(
            f"a parameter of {p.dtype} with a {kind} gradient; SAM takes dense float32, bfloat16 or float16"
        )
    return sam_norm(_row(p).float(), _row(gradient), adaptive=group["adaptive"])


def _perturb(p: Tensor, gradient: Tensor, group: dict[str, Any], norm: Tensor, buffer: Tensor) -> None:
    """Write the perturbed weights of `p` into `buffer`, computed in float32 and rounded to the parameter's dtype."""
    rho = -group["rho"] if group.get("maximize") else group["rho"]  # towards the worst, which is the lowest then
    options = {"rho": rho, "adaptive": group["adaptive"], "norm": norm}
    weights, gradient = _row(p), _row(gradient)
    if p.dtype == torch.float32 and p.is_contiguous() and buffer.is_contiguous():
        sam_perturb(weights, gradient, out=buffer.view(1, -1), **options)
    else:
        buffer.copy_(sam_perturb(weights.float(), gradient, **options).view(p.shape))
