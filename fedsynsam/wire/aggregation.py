"""The server's weighted mean of payloads, without a dense copy per client."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence, Set

import torch
from torch import Tensor

from .. import ops
from ..errors import ArgumentError
from .payload import Payload
from .plan import Plan

_BLOCK = 1 << 18  # entries of a dense payload that a CPU adds at a time, so that the products stay in its cache


def aggregate(payloads: Iterable[Payload], weights: Sequence[float] | None = None) -> Tensor | dict[str, Tensor]:
    """Return Σ wᵢ · decompress(payloadᵢ) / Σ wᵢ, in the structure of the update, float32.

    `weights` are the clients' (their numbers of examples, say), one for each payload; None weighs all alike. The
    mean is over all payloads given, also where a payload did not send an entry. Weights are normalised in float64
    and rounded to float32; the sum runs in float32 in the order of the payloads, so the result is the same on every
    backend and for any number of threads. Payloads of different specs may be mixed.

    Raises ArgumentError for no payloads, payloads of different layouts or devices, and weights that are negative,
    not finite, all zero, or not as many as the payloads.
    """
    payloads = list(payloads)
    _check_payloads(payloads)
    manifest = payloads[0].manifest
    shares = normalised_weights(weights, len(payloads))
    out = _device_tensor(payloads[0]).new_zeros(manifest.num_elements, dtype=torch.float32)
    for _, run in itertools.groupby(zip(payloads, shares, strict=True), key=lambda pair: _kind(pair[0].plan)):
        batch, batch_shares = zip(*run, strict=True)
        _add(batch, torch.tensor(batch_shares, dtype=torch.float32, device=out.device), out)
    return manifest.split(out)


def normalised_weights(weights: Sequence[float] | None, count: int) -> list[float]:
    """Return `count` weights that add up to 1 (in float64), in proportion to `weights`."""
    if weights is None:
        return [1 / count] * count
    if isinstance(weights, (str, bytes, Mapping, Set)) or not isinstance(weights, Iterable):
        raise ArgumentError(f"weights is a {type(weights).__name__}; expected a list of numbers, one for each payload")
    try:
        values = [float(weight) for weight in weights]
    except (TypeError, ValueError, OverflowError) as error:
        raise ArgumentError(f"weights must be numbers, one for each payload ({error})") from error
    if len(values) != count:
        raise ArgumentError(f"weights must be one for each of the {count} payloads, not {len(values)}")
    for position, value in enumerate(values):
        if not math.isfinite(value) or value < 0:
            raise ArgumentError(f"weights[{position}]={value} is wrong; weights must be finite and not negative")
    try:
        total = math.fsum(values)
    except OverflowError:  # finite numbers whose sum is not
        total = math.inf
    if not 0 < total < math.inf:
        raise ArgumentError(f"weights sum to {total}; at least one must be positive, and their sum finite")
    return [value / total for value in values]


def _check_payloads(payloads: Sequence[Payload]) -> None:
    if not payloads:
        raise ArgumentError("there is nothing to aggregate: payloads is empty")
    for position, payload in enumerate(payloads):
        if not isinstance(payload, Payload):
            raise ArgumentError(f"payloads[{position}] is a {type(payload).__name__}, not a Payload; decode it first")
        if difference := payloads[0].manifest.difference(payload.manifest):
            raise ArgumentError(f"payloads[{position}] has another layout than payloads[0]: {difference}")
        device, first = _device_tensor(payload).device, _device_tensor(payloads[0]).device
        if device != first:
            raise ArgumentError(f"payloads[{position}] lies on {device}, payloads[0] on {first}")


def _device_tensor(payload: Payload) -> Tensor:
    return next(iter(payload.tensors.values()))


def _kind(plan: Plan) -> tuple[str, int, int]:
    """Return what payloads must have in common to be added in one call."""
    if plan.sparse:
        return ("sparse", 0, 0)
    return ("dense", 0, 0) if plan.bits is None else ("codes", plan.bits, plan.bucket)


def _add(payloads: Sequence[Payload], weights: Tensor, out: Tensor) -> None:
    """Add Σ weightᵢ · decompress(payloadᵢ) to `out`, in order, for payloads of one kind."""
    plan, n = payloads[0].plan, out.numel()
    if plan.sparse:
        _add_sparse(payloads, weights, out)
    elif plan.bits is None:
        block = _BLOCK if out.is_cpu else max(n, 1)  # elsewhere a block more is a launch more
        for payload, weight in zip(payloads, weights, strict=True):
            for some, values in zip(out.split(block), payload.tensors["values"].split(block), strict=True):
                some += values * weight  # two roundings, as in the ops
    else:
        codes = [payload.tensors["codes"] for payload in payloads]
        scales = [payload.tensors["scales"] for payload in payloads]
        ops.aggregate_codes(codes, scales, weights, n=n, bits=plan.bits, bucket=plan.bucket, out=out, accumulate=True)


def _add_sparse(payloads: Sequence[Payload], weights: Tensor, out: Tensor) -> None:
    """The same for sparse payloads; values are dequantized as they come, for at most a quarter of `out` at a time."""
    indices, values, shares, held = list[Tensor](), list[Tensor](), list[Tensor](), 0
    for payload, weight in zip(payloads, weights, strict=True):
        for some, theirs in payload.sent_parts():
            if held and held + theirs.numel() > out.numel() // 4:
                ops.aggregate_sparse(indices, values, torch.stack(shares), n=out.numel(), out=out, accumulate=True)
                indices, values, shares, held = [], [], [], 0
            indices.append(some)
            values.append(theirs)
            shares.append(weight)
            held += 0 if payload.plan.bits is None else theirs.numel()
    if indices:
        ops.aggregate_sparse(indices, values, torch.stack(shares), n=out.numel(), out=out, accumulate=True)
