"""The update of a state dict as large models have them: `python examples/state_dict.py`.

Nested names, a tied weight, bfloat16, and integer buffers, which are no gradients: they pass beside the payload.
"""

import torch
from safetensors.torch import load, save

import fedsynsam as fs


class Tiny(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(500, 32)
        self.layers = torch.nn.ModuleList([torch.nn.Linear(32, 32) for _ in range(2)])
        self.head = torch.nn.Linear(32, 500, bias=False)
        self.head.weight = self.embed.weight  # tied: one tensor under two names
        self.register_buffer("positions", torch.arange(64))


def split(state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return (what to compress, what passes as it is); a tied tensor stays under its first name only."""
    seen: set[tuple[int, int]] = set()
    floats, others = {}, {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tensor.numel())
        if key in seen:
            continue
        seen.add(key)
        (floats if tensor.is_floating_point() else others)[name] = tensor
    return floats, others


torch.manual_seed(0)
received, trained = Tiny().bfloat16(), Tiny().bfloat16()
trained.load_state_dict({name: value + 0.01 if value.is_floating_point() else value + 1
                         for name, value in received.state_dict().items()})  # fmt: skip

# the client
before, _ = split(received.state_dict())
after, buffers = split(trained.state_dict())
uplink = fs.Uplink("topk:0.1+quantize:8", like=before)
message = uplink.encode({name: after[name] - before[name] for name in before}), save(buffers)

# the server
payload = fs.Payload.decode(message[0], like=before)
update, passed = payload.decompress(), load(message[1])
with torch.no_grad():
    for name, tensor in received.state_dict().items():
        if name in update:
            tensor += update[name]  # float32 onto bfloat16; the tied name changes with it
        elif name in passed:
            tensor.copy_(passed[name])

assert received.head.weight is received.embed.weight
assert torch.equal(received.positions, trained.positions)
dense = sum(tensor.nbytes for tensor in before.values())
print(f"{len(before)} tensors, {payload.num_sent} of {payload.num_elements} values in {len(message[0])} bytes, "
      f"{dense / len(message[0]):.1f} x smaller than bfloat16")  # fmt: skip
