"""The server's mean: against a float64 oracle, against the float32 definition bit for bit, and its errors."""

import numpy as np
import pytest
import torch

import fedsynsam as fs

SPECS = ["none", "topk:0.1", "chunktopk:0.1[chunk=64]", "quantize:4", "quantize:2[bucket=64]", "topk:0.1+quantize:8"]
MIXED = [
    "topk:0.1",
    "topk:0.3+quantize:4",
    "none",
    "quantize:4",
    "quantize:4",
    "quantize:4[bucket=64]",
    "none",
    "topk:1",
]


def make_update(seed):
    generator = torch.Generator().manual_seed(seed)
    return {"w": torch.randn(30, 20, generator=generator), "s": torch.randn((), generator=generator),
            "e": torch.zeros(0), "b": torch.randn(41, generator=generator)}  # fmt: skip


def payloads_of(specs):
    result = []
    for seed, spec in enumerate(specs):
        compressor, update = fs.compressor(spec), make_update(seed)
        payload, _ = compressor.compress(update, compressor.init(update), seed=seed)
        result.append(fs.Payload.decode(payload.encode(), like=update))
    return result


def row(update):
    return torch.cat([tensor.reshape(-1) for tensor in update.values()])


@pytest.mark.parametrize("specs", [[spec] * 5 for spec in SPECS] + [MIXED], ids=[*SPECS, "mixed"])
@pytest.mark.parametrize("weights", [None, "counts"])
def test_weighted_mean(specs, weights):
    payloads = payloads_of(specs)
    counts = [120, 80, 1, 0, 1000, 7, 33, 60][: len(payloads)] if weights else None
    mean = fs.aggregate(payloads, counts)
    rows = [row(payload.decompress()) for payload in payloads]
    total = np.array(counts or [1] * len(payloads), np.float64)
    shares = total / total.sum()
    exact = sum(share * r.double().numpy() for share, r in zip(shares, rows, strict=True))
    assert np.allclose(row(mean).numpy(), exact, rtol=0, atol=1e-6)
    step_by_step = torch.zeros_like(rows[0])
    for share, r in zip(shares, rows, strict=True):
        step_by_step = step_by_step + torch.tensor(share, dtype=torch.float32) * r
    assert torch.equal(row(mean), step_by_step)
    assert {name: tensor.shape for name, tensor in mean.items()} == {n: t.shape for n, t in make_update(0).items()}


def test_dense_payloads_longer_than_a_block():
    """They are added block by block, which must change no bit; huge rows have memory of their own kind."""
    compressor, n = fs.Identity(), (1 << 22) + 3
    updates = [torch.randn(n, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    blobs = [compressor.compress(update, compressor.init(update), seed=0)[0].encode() for update in updates]
    payloads = [fs.Payload.decode(blob, like=updates[0]) for blob in blobs]
    shares = torch.tensor([0.5, 0.25, 0.25])
    assert torch.equal(
        fs.aggregate(payloads, [2, 1, 1]), sum(share * u for share, u in zip(shares, updates, strict=True))
    )
    updates[0][-1] = torch.nan
    with pytest.raises(fs.NonFiniteError, match="holds NaN"):
        compressor.compress(updates[0], compressor.init(updates[0]), seed=0)


def test_the_mean_is_over_clients_not_over_senders():
    compressor = fs.TopK(0.25)
    updates = [torch.tensor([4.0, 0, 0, 0]), torch.tensor([0, 0, 0, 2.0])]
    payloads = [compressor.compress(update, compressor.init(update), seed=0)[0] for update in updates]
    assert fs.aggregate(payloads).tolist() == [2, 0, 0, 1]
    assert fs.aggregate(payloads, [3, 1]).tolist() == [3, 0, 0, 0.5]


def test_a_single_payload_is_its_own_mean():
    for payload in payloads_of(SPECS):
        for weights in (None, [17]):
            assert torch.equal(row(fs.aggregate([payload], weights)), row(payload.decompress()))


def test_weights_of_any_size():
    payloads = payloads_of(["topk:0.1"] * 2)
    same = row(fs.aggregate(payloads))
    for weights in ([1e-300, 1e-300], [1e300, 1e300], np.array([5, 5]), torch.tensor([2.0, 2.0])):
        assert torch.equal(row(fs.aggregate(payloads, weights)), same)
    assert torch.equal(row(fs.aggregate(iter(payloads))), same)


def test_no_elements():
    update = torch.zeros(0)
    payloads = [fs.TopK(0.1).compress(update, fs.TopK(0.1).init(update), seed=0)[0]] * 2
    assert fs.aggregate(payloads).shape == (0,)


def test_errors():
    payloads = payloads_of(["topk:0.1"] * 2)
    other = {"w": torch.ones(30, 20)}
    stranger = fs.Identity().compress(other, fs.Identity().init(other), seed=0)[0]
    for arguments, message in (
        (([],), "payloads is empty"),
        (([*payloads, stranger],), r"payloads\[2\] has another layout than .*: tensors 's', 'e', 'b' missing"),
        (([payloads[0], b"bytes"],), r"payloads\[1\] is a bytes"),
        ((payloads, [1, -1]), r"weights\[1\]=-1.0 is wrong"),
        ((payloads, [1, float("nan")]), r"weights\[1\]=nan"),
        ((payloads, [float("inf"), 1]), r"weights\[0\]=inf"),
        ((payloads, [0, 0]), "weights sum to 0.0"),
        ((payloads, [1.7e308, 1.7e308]), "weights sum to inf; .* their sum finite"),
        ((payloads, [10**400, 1]), "weights must be numbers, one for each payload"),
        ((payloads, [1]), "one for each of the 2 payloads, not 1"),
    ):
        with pytest.raises(fs.ArgumentError, match=message):
            fs.aggregate(*arguments)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({0: 120, 1: 80}, "weights is a dict"),
        ("12", "weights is a str"),
        ({1.0, 2.0}, "weights is a set"),
        (3, "weights is a int"),
        ([1, None], "weights must be numbers"),
        (torch.ones(2, 2), "weights must be numbers"),
    ],
)
def test_weights_that_are_no_list_of_numbers(weights, words):
    with pytest.raises(fs.ArgumentError, match=words):
        fs.aggregate(payloads_of(["topk:0.5", "topk:0.5"]), weights=weights)
