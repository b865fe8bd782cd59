"""Payloads of a CUDA device: the bytes, the state and the mean are those of the CPU."""

import pytest
import torch

import fedsynsam as fs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device"),
]


@pytest.mark.parametrize(
    "spec", ["none", "topk:0.02", "chunktopk:0.05", "quantize:1", "quantize:4[norm=l2]", "topk:0.1+quantize:4"]
)
def test_the_device_does_not_show_in_the_bytes(spec):
    generator = torch.Generator().manual_seed(0)
    update = {"w": torch.randn(300, 41, generator=generator), "b": torch.randn(7, generator=generator)}
    compressor = fs.compressor(spec)
    means = []
    for device in ("cpu", "cuda"):
        local = {name: tensor.to(device) for name, tensor in update.items()}
        state = compressor.init(local)
        payloads = []
        for _ in range(3):
            payload, state = compressor.compress(local, state, seed=3)
            payloads.append(fs.Payload.decode(payload.encode(), like=local))
        assert payloads[0].decompress()["w"].device.type == device
        mean = fs.aggregate(payloads, [1, 2, 3])
        means.append([*(p.encode() for p in payloads), *(t.cpu().numpy().tobytes() for t in mean.values())])
        means[-1] += [t.cpu().numpy().tobytes() for t in state.state_dict().values()]
    assert means[0] == means[1]
    with pytest.raises(fs.ArgumentError, match=r"payloads\[1\] lies on"):
        fs.aggregate([payloads[0], fs.Payload.decode(payloads[0].encode(), like=update)])
