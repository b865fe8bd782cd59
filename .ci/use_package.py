"""The README's round trip on an installed package: compress, encode, decode, decompress, aggregate."""

import torch

import fedsynsam as fs

update = {"weight": torch.randn(64, 100, generator=torch.Generator().manual_seed(0)), "bias": torch.ones(64)}
compressor = fs.compressor("topk:0.01+quantize:4")
state = compressor.init(update)
payload, state = compressor.compress(update, state, seed=7)
blob = payload.encode()
again = fs.Payload.decode(blob, like=update)
if again.encode() != blob:
    raise SystemExit("decode(encode(payload)) is another payload")
mean = fs.aggregate([payload, again], weights=[120, 80])
if any(mean[name].shape != tensor.shape for name, tensor in update.items()):
    raise SystemExit("the mean has other shapes than the update")
print(f"{len(blob)} bytes for {payload.num_elements} values")
