"""encode_indices and decode_indices on a CUDA device, each GPU backend against the reference on the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fedsynsam.ops import DecodedIndices, backend, decode_indices, encode_indices, index_words

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
# (rows, n, k); the last three have several tiles a block in some backend.
SIZES = [(1, 1, 1), (3, 1009, 1009), (2, 4097, 41), (64, 100_000, 1000), (1, 2**31 - 1, 3), (5, 70_001, 35_003)]
SIZES += [(1, 10_000_000, 1_000_000), (2, 3_000_000, 2_999_999), (1, 100_000_000, 10_000_000)]


@pytest.fixture(params=["cuda", "triton"])
def use(request: pytest.FixtureRequest) -> Iterator[str]:
    if (reason := backend.why_not(request.param)) is not None:
        pytest.skip(reason)
    with backend.use_backend(request.param):
        yield request.param


def draw(rows: int, n: int, k: int) -> Tensor:
    """Rows of k ascending indices below n, by random gaps that fill what n leaves."""
    gaps = torch.rand(rows, k, dtype=torch.float64).sort(dim=1).values * (n - k)
    return (gaps.long() + torch.arange(k)).to(torch.int32)


def on_cpu(operation, *arguments, **options):
    name = "cpu" if backend.why_not("cpu") is None else "reference"
    with backend.use_backend(name):
        return operation(*arguments, **options)


def dirty(words: Tensor, k: int) -> DecodedIndices:
    rows = words.shape[0]
    indices = torch.full((rows, k), -7, dtype=torch.int32, device="cuda")
    return DecodedIndices(indices, torch.full((rows,), 5, dtype=torch.uint8, device="cuda").view(torch.bool))


def check(words: Tensor, n: int, k: int) -> DecodedIndices:
    expected = on_cpu(decode_indices, words.cpu(), n=n, k=k)
    decoded = decode_indices(words, n=n, k=k, out=dirty(words, k))
    assert torch.equal(decoded.valid.cpu(), expected.valid)
    assert torch.equal(decoded.indices.cpu(), expected.indices)
    return decoded


@pytest.mark.parametrize(("rows", "n", "k"), SIZES)
def test_equals_the_reference(use, rows, n, k):
    torch.manual_seed(k)
    indices = draw(rows, n, k)
    out = torch.full((rows, index_words(n, k)), -1, dtype=torch.int32, device="cuda")
    for _ in range(3):
        encode_indices(indices.cuda(), n=n, out=out)
        assert torch.equal(out.cpu(), on_cpu(encode_indices, indices, n=n))
        assert check(out, n, k).valid.all()


def test_views_at_odd_offsets(use):
    n, k = 50_000, 999
    indices = draw(2, n, k)
    storage = torch.empty(2 * k + 1, dtype=torch.int32, device="cuda")
    view = storage[1:].view(2, k).copy_(indices)
    words = encode_indices(view, n=n)
    assert torch.equal(words.cpu(), on_cpu(encode_indices, indices, n=n))
    assert torch.equal(encode_indices(indices.cuda().t().contiguous().t(), n=n), words)


def test_rubbish_indices_and_hostile_words(use):
    torch.manual_seed(0)
    n, k = 300_000, 20_000
    rubbish = torch.randint(-(2**31), 2**31, (3, k), dtype=torch.int64).to(torch.int32)
    with backend.use_backend("reference"):
        expected = encode_indices(rubbish, n=n)
    assert torch.equal(encode_indices(rubbish.cuda(), n=n).cpu(), expected)
    words = on_cpu(encode_indices, draw(40, n, k), n=n)
    words[3], words[4] = -1, 0
    words[5] = torch.randint(-(2**31), 2**31, words[5].shape, dtype=torch.int64).to(torch.int32)
    for row in range(8, 40):
        words[row, torch.randint(words.shape[1], ()).item()] ^= 1 << row % 31
    valid = check(words.cuda(), n, k).valid.tolist()
    assert valid[:8] == [True, True, True, False, False, False, True, True]


def test_graph_capture_on_a_side_stream_without_synchronization(use):
    n, k = 1_000_000, 10_000
    indices = draw(4, n, k).cuda()
    words = torch.empty(4, index_words(n, k), dtype=torch.int32, device="cuda")
    out = dirty(words, k)
    encode_indices(indices, n=n, out=words)  # compiles Triton's kernels, which a capture may not
    decode_indices(words, n=n, k=k, out=out)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.stream(side):
            encode_indices(indices, n=n, out=words)
            decode_indices(words, n=n, k=k, out=out)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        encode_indices(indices, n=n, out=words)
        decode_indices(words, n=n, k=k, out=out)
    fresh = draw(4, n, k)
    indices.copy_(fresh)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(words.cpu(), on_cpu(encode_indices, fresh, n=n))
    assert torch.equal(out.indices.cpu(), fresh)
    assert out.valid.all()


def test_compiled_by_torch(use):
    n, k = 10_000, 100
    indices = draw(3, n, k).cuda()

    @torch.compile(fullgraph=True)
    def there_and_back(given: Tensor) -> tuple[Tensor, ...]:
        return tuple(decode_indices(encode_indices(given, n=n), n=n, k=k))

    decoded, valid = there_and_back(indices)
    assert torch.equal(decoded, indices)
    assert valid.all()
