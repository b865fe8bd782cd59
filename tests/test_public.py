"""The names that `import fedsynsam as fs` promises."""

import subprocess
import sys
from importlib.metadata import version

import fedsynsam as fs

PROMISED = {
    *("compressor", "TopK", "ChunkTopK", "Quantize", "Chain", "Identity", "Payload", "Manifest", "aggregate"),
    *("row_seed", "use_backend", "SAM", "FedSynSamError", "ArgumentError", "SpecError", "NonFiniteError"),
    *("PayloadError", "StateError", "BackendError", "ConfigError", "DataError", "CheckpointError", "__version__"),
}


def test_every_promised_name_is_there():
    for name in PROMISED:
        assert name in fs.__all__
        assert hasattr(fs, name)
    for name in fs.__all__:
        assert hasattr(fs, name)


def test_version():
    assert fs.__version__ == version("fedsynsam")


def test_import_needs_no_triton_and_no_extension():
    script = (
        "import sys; sys.modules['triton'] = None; sys.modules['fedsynsam._C'] = None\n"
        "import torch, fedsynsam as fs\n"
        "u = torch.ones(100); c = fs.compressor('topk:0.1+quantize:4')\n"
        "print(fs.Payload.decode(c.compress(u, c.init(u), seed=0)[0].encode(), like=u).num_sent)\n"
        "from fedsynsam.ops.backend import why_not; assert why_not('cpu')"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert out.stdout.strip() == "10", out.stderr
