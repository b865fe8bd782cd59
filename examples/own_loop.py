"""Federated averaging in a loop of one's own, with compressed uplinks: `python examples/own_loop.py`."""

import copy

import torch

import fedsynsam as fs

torch.manual_seed(0)
truth = torch.randn(50, 4)
clients = []
for shift in range(5):  # every client sees inputs of its own kind
    inputs = torch.randn(200, 50) + 0.3 * shift
    clients.append((inputs, (inputs @ truth).argmax(dim=1)))

model = torch.nn.Sequential(torch.nn.Linear(50, 200), torch.nn.ReLU(), torch.nn.Linear(200, 4))
uplinks = [fs.Uplink("topk:0.02+quantize:8", like=model, seed=client) for client in range(len(clients))]
sent = dense = 0
for _ in range(30):
    received = []
    for (inputs, labels), uplink in zip(clients, uplinks, strict=True):
        local = copy.deepcopy(model)
        optimizer = torch.optim.SGD(local.parameters(), lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(local(inputs), labels).backward()
            optimizer.step()
        before, after = dict(model.named_parameters()), dict(local.named_parameters())
        blob = uplink.encode({name: after[name].detach() - before[name].detach() for name in before})
        received.append(fs.Payload.decode(blob, like=before))  # on the server: checked, bounded
        sent += len(blob)
        dense += sum(4 * weight.numel() for weight in before.values())
    mean = fs.aggregate(received, weights=[len(labels) for _, labels in clients])
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight += mean[name]

right = sum(int((model(inputs).argmax(dim=1) == labels).sum()) for inputs, labels in clients)
print(f"accuracy {right / 1000:.3f}, uplink {sent} bytes, {dense / sent:.0f} x smaller than dense float32")
