"""What clients and the server remember from round to round besides weights and residuals, and the rules that renew it.

Δ_i is a client's update, C(Δ_i) what the server received of it, S the cohort, N the number of all clients, K local
steps, η the local rate. Every rule uses C(Δ_i), which both sides know, so that nothing else need be sent.

| choice | a client keeps | the server keeps | sent to clients |
|---|---|---|---|
| momentum | | momentum m = −Δ̄ / (Kη), Δ̄ the mean over S weighted by examples | m |
| variates | variate c_i ← c_i − c − C(Δ_i) / (Kη) | variate c ← c + Σ_S (c_i⁺ − c_i) / N | c |
| duals | dual h_i ← h_i + C(Δ_i) | dual h ← h + Σ_S C(Δ_i) / N | |
| consensus | mu μ_i, of which C(μ_i) is uploaded | consensus s = ρ m̄ / ‖m̄‖, m̄ the mean of C(μ_i) over S | s |
| server step sam | | update Δ̄ | |

All are float32 [P], zero at first, so that c = Σ_N c_i / N and h = Σ_N h_i / N at any time, up to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from fedsynsam.fl.algorithm import PRESETS
from fedsynsam.fl.config import RunConfig
from fedsynsam.ops import sam_perturb
from fedsynsam.wire import Payload, aggregate

SENT = ("momentum", "variate", "consensus")  # of the server's vectors


def vectors_of_clients(config: RunConfig, residual: bool) -> tuple[str, ...]:
    """The names of a client's vectors; `residual` says whether the compressor keeps one for each upload."""
    preset = PRESETS[config.algorithm]
    names = ["residual"] if residual else []
    names += {"variates": ["variate"], "duals": ["dual"]}.get(preset.correction, [])
    if preset.perturbation == "consensus":
        names += ["mu", "mu_residual"] if residual else ["mu"]
    return tuple(names)


def sent_vectors(memory: Mapping[str, Tensor]) -> list[Tensor]:
    """What a client is sent of the server's `memory` besides the weights."""
    return [memory[name] for name in SENT if name in memory]


def next_of_client(
    config: RunConfig, own: Mapping[str, Tensor], memory: Mapping[str, Tensor], payload: Payload
) -> dict[str, Tensor]:
    """What a client's correction keeps after a round: `own` its vectors, `memory` the server's during the round."""
    kind = PRESETS[config.algorithm].correction
    if kind not in ("variates", "duals"):
        return {}
    update = cast(Tensor, payload.decompress())
    if kind == "duals":
        return {"dual": own["dual"] + update}
    before = own["variate"] - memory["variate"] if "variate" in memory else own["variate"]
    return {"variate": before - update / (config.local_steps * config.lr)}


def descent(config: RunConfig, after: Mapping[str, Tensor], payload: Payload) -> Tensor | None:
    """U_i [P], what gradients of the client's own loss contributed to C(Δ_i); None where they made all of it.

    With local steps w ← w − η (∇f_i + λ (w − w_t + h_i)), or w ← w − η (∇f_i + c − c_i), U_i = −η Σ ∇f_i is
    Kηλ h_i⁺ + (1 − Kηλ/2) C(Δ_i), or −Kη c_i⁺. `after` holds h_i⁺ or c_i⁺, which the round left with the client; the
    sum of w − w_t over the steps is taken as K C(Δ_i) / 2. A server, to whom every update came, can know it all.
    """
    kind, scale = PRESETS[config.algorithm].correction, config.local_steps * config.lr
    if kind == "variates":
        return -scale * after["variate"]
    if kind == "duals":
        pull = scale * (config.prox or 0.0)
        return pull * after["dual"] + (1.0 - 0.5 * pull) * cast(Tensor, payload.decompress())
    return None


def next_of_server(
    config: RunConfig,
    memory: Mapping[str, Tensor],
    mean: Tensor,
    payloads: Sequence[Payload],
    mu_payloads: Sequence[Payload],
) -> dict[str, Tensor]:
    """The server's vectors after a round with the `payloads` of the cohort, whose weighted mean is `mean`."""
    preset, scale = PRESETS[config.algorithm], config.local_steps * config.lr
    share = len(payloads) / config.clients
    after = {}
    if preset.correction == "momentum":
        after["momentum"] = -mean / scale
    if preset.correction in ("variates", "duals"):
        spread = share * cast(Tensor, aggregate(payloads))  # Σ_S C(Δ_i) / N
        if preset.correction == "duals":
            after["dual"] = memory["dual"] + spread if "dual" in memory else spread
        else:
            before = memory.get("variate", torch.zeros_like(spread))
            after["variate"] = before - share * before - spread / scale
    if preset.perturbation == "consensus":
        after["consensus"] = ahead(torch.zeros_like(mean), cast(Tensor, aggregate(mu_payloads)), config.rho or 0.0)
    if preset.server_step == "sam":
        after["update"] = mean
    return after


def ahead(weights: Tensor, direction: Tensor, rho: float) -> Tensor:
    """w + ρ d / ‖d‖ for vectors [P]; w where d is zero."""
    return sam_perturb(weights[None], direction[None], rho=rho)[0]
