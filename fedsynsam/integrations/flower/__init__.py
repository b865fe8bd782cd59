"""Compressed updates in Flower (Message API), and FedSynSAM as a strategy: `pip install 'fedsynsam[flower]'`.

    app = ClientApp(mods=[CompressionMod("topk:0.01")])                         # the client
    strategy.start(CompressedGrid(grid, "topk:0.01"), initial_arrays, ...)      # the server, with any strategy

Stands beside `fedsynsam.fl`, whose synthesis it uses; `import fedsynsam` alone loads neither this nor Flower.
"""

try:
    import flwr.serverapp.strategy  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"fedsynsam.integrations.flower needs Flower's Message API ({error}); pip install 'fedsynsam[flower]'"
    ) from error

from .grid import CompressedGrid
from .local import LocalSynSAM
from .mod import CompressionMod
from .strategy import FedSynSAM

__all__ = ["CompressedGrid", "CompressionMod", "FedSynSAM", "LocalSynSAM"]
