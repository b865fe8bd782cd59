"""The configuration of one federated run: typed, validated, and readable from TOML or JSON."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from fedsynsam.errors import ConfigError

ALGORITHMS = (
    "fedsynsam", "fedsynsam-s", "fedsynsam-d", "fedavg", "fedprox", "scaffold", "feddyn", "fedsam", "mofedsam",
    "fedgamma", "fedspeed", "fedsmoo", "fedlesam", "fedlesam-s", "fedlesam-d", "fedgloss", "dynafed", "realset",
    "oracle",
)  # fmt: skip
PARTITIONS = ("dirichlet", "iid", "shards")
MODELS = ("cnn", "mlp", "resnet18")
DATASETS = ("fashion-mnist-subset", "fashion-mnist", "cifar10", "cifar100")
SYNTHETIC_METHODS = ("gradient", "trajectory")
REFRESHES = ("step", "round")
ENGINES = ("auto", "sequential", "batched", "unfold")
RESIDUAL_STORES = ("auto", "device", "host", "disk")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides the numbers of a run. Two equal configurations give the same metrics, times apart.

    Raises `ConfigError` naming the key, its value and what would be right.
    """

    algorithm: str = "fedsynsam"
    """A preset: fedsynsam[-s, -d], fedavg, fedprox, scaffold, feddyn, fedsam, mofedsam, fedgamma, fedspeed, fedsmoo,
    fedlesam[-s, -d], fedgloss, dynafed; realset and oracle are ceilings for study."""
    compressor: str = "topk:0.01"
    """Spec of the uplink's compressor: none, topk:DENSITY, chunktopk:DENSITY, quantize:BITS, joined by +."""
    dataset: str = "fashion-mnist-subset"
    """fashion-mnist-subset (inside the package), fashion-mnist, cifar10, cifar100, or the path of an .npz file."""
    data_dir: str | None = None
    """Folder with the files of the data set; else $FEDSYNSAM_DATA, else where Debian's package puts them."""
    partition: str = "dirichlet"
    """How the training set is split over the clients: dirichlet (over labels), iid, or shards (of sorted labels)."""
    alpha: float = 0.1
    """Concentration of the Dirichlet split: small means that a client sees few labels; inf: all alike."""
    shards_per_client: int = 2
    """Shards of sorted labels that a client gets (partition shards)."""
    clients: int = 50
    """Number of clients."""
    participation: float = 0.2
    """Fraction of the clients in a round's cohort."""
    rounds: int = 60
    """Number of rounds."""
    local_steps: int = 20
    """Local steps of a client in a round."""
    batch_size: int = 32
    """Examples in a local step; a client that holds fewer uses all it has."""
    lr: float = 0.05
    """Local learning rate."""
    server_lr: float = 1.0
    """Server learning rate on the aggregated update."""
    weight_decay: float = 0.0
    """Local weight decay."""
    momentum: float = 0.0
    """Local momentum; its buffer starts at zero in each round."""
    clip_norm: float | None = None
    """Local gradients longer than this are shortened to it, before any correction is added; by default none is."""
    rho: float | None = None
    """Radius of the perturbation; by default the algorithm's own."""
    prox: float | None = None
    """Lambda, the weight of proximal and dual terms; by default the algorithm's own (0.1 where it has them)."""
    gradient_share: float | None = None
    """MoFedSAM's alpha: a step goes along alpha * gradient + (1 - alpha) * global momentum; by default 0.1."""
    beta: float = 1.0
    """FedSynSAM: weight of the synthetic gradient, 1 - beta is that of the local one."""
    model: str = "cnn"
    """cnn (two 5x5 convolutions), mlp, or resnet18 (GroupNorm)."""
    seed: int = 0
    """Seed of the split, the weights, the cohorts, the batches and the compressor."""
    device: str = "auto"
    """auto (CUDA when there is one), cpu, cuda or cuda:N."""
    threads: int | None = None
    """Threads that train clients on a CPU; by default one a core. Changes no result of the sequential engine."""
    engine: str | None = None
    """How clients are trained: sequential, batched, unfold, or auto (measured). Default: sequential, on CUDA auto."""
    capture: bool = True
    """On a GPU, record a local round as a CUDA graph and replay it. Never changes a result."""
    eval_every: int = 2
    """Rounds between evaluations on the test set; the last round always has one."""
    encode: bool = True
    """Send real bytes (encode, decode); False hands the payload over as it is and only measures its length."""
    cosines: bool = False
    """Log the cosine between each estimate of the perturbation and the global gradient, on a held-out sample."""
    sharpness: bool = False
    """Log the largest eigenvalue of the training loss's Hessian at every fifth evaluation (Lanczos, a fixed sample)."""
    checkpoint_every: int = 10
    """Rounds between checkpoints (the last round, and SIGINT and SIGTERM, always make one); 0 writes none."""
    residual_store: str = "auto"
    """Where the clients' residuals lie: device, host, disk (the run's folder), or auto, by the memory there is."""

    synthetic: str | None = None
    """File of a synthetic set (the synthetic.safetensors of a run): used from round 1 instead of learning one."""
    synthetic_method: str = "gradient"
    """How the synthetic set is learned: gradient (matching) or trajectory (matching, DynaFed's way)."""
    synthetic_start: int = 25
    """R: rounds of plain FedAvg before the synthetic set is first learned and used."""
    synthetic_every: int | None = None
    """Rounds between renewals of the synthetic set from R on, warm-started; 0: none. Default: 10, or 0 with a file."""
    synthetic_images: int = 5
    """Synthetic images a class."""
    synthetic_steps: int = 400
    """Optimizer steps when the set is first learned; a renewal takes a third of them."""
    synthetic_segment: int = 5
    """s: rounds of the trajectory that a step of trajectory matching spans."""
    synthetic_window: int = 25
    """Latest rounds of the trajectory that the synthetic set is learned from."""
    finetune_steps: int = 20
    """DynaFed: the server's gradient steps on the synthetic set after each round, at the rate learned with the set."""
    synthetic_refresh: str = "step"
    """step: the synthetic gradient is taken anew in each local step; round: once at the round's global weights."""

    def __post_init__(self) -> None:
        _check_types(self)
        _check_choices(self)
        _check_ranges(self)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON types, keyed by field name; JSON has no infinity, so that is the string inf."""
        return {key: "inf" if value == math.inf else value for key, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunConfig:
        """A configuration from `values`; an unknown key raises `ConfigError` with the closest known one."""
        known = [field.name for field in dataclasses.fields(cls)]
        # TOML writes keys with dashes as naturally as with underscores: accept both.
        renamed = {key.replace("-", "_"): value for key, value in values.items()}
        for key in renamed:
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
                raise ConfigError(f"unknown configuration key {key!r}; {hint}")
        return cls(**renamed)

    @classmethod
    def from_toml(cls, path: str | Path, **overrides: Any) -> RunConfig:
        """A configuration from the TOML file at `path`, but for its table [compare], then `overrides`."""
        values = read_toml(path)
        values.pop("compare", None)  # which algorithms, compressors and seeds: for `fedsynsam compare` alone
        return cls.from_dict({**values, **overrides})

    def replace(self, **changes: Any) -> RunConfig:
        """A copy with `changes` made and validated."""
        return dataclasses.replace(self, **changes)

    @property
    def cohort_size(self) -> int:
        """Clients in a round: `participation` of `clients`, rounded to the nearest, at least one."""
        return max(1, math.floor(self.participation * self.clients + 0.5))

    def evaluates(self, round_number: int) -> bool:
        """Whether the weights are evaluated after this round, the first being 1."""
        return round_number % self.eval_every == 0 or round_number == self.rounds


def read_toml(path: str | Path) -> dict[str, Any]:
    """The top-level table of the TOML file at `path`; raises `ConfigError` when it is missing or malformed."""
    try:
        import tomllib  # type: ignore[import-not-found,unused-ignore]
    except ImportError:  # Python 3.10
        import tomli as tomllib  # type: ignore[import-not-found,no-redef,unused-ignore]
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"config file {str(path)!r} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {str(path)!r} is not TOML: {error}") from error


def _check_types(config: RunConfig) -> None:
    for name, hint in get_type_hints(RunConfig).items():
        value = getattr(config, name)
        allowed = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        if float in allowed and (type(value) is int or value == "inf"):
            object.__setattr__(config, name, float(value))  # 1 is as good as 1.0, and config.json stays canonical
        elif type(value) not in allowed:
            expected = " or ".join("nothing" if kind is type(None) else kind.__name__ for kind in allowed)
            raise ConfigError(f"{name}: {value!r} is {type(value).__name__}, expected {expected}")


def _check_choices(config: RunConfig) -> None:
    choices = {
        "algorithm": ALGORITHMS,
        "partition": PARTITIONS,
        "model": MODELS,
        "synthetic_method": SYNTHETIC_METHODS,
        "synthetic_refresh": REFRESHES,
        "residual_store": RESIDUAL_STORES,
        "engine": ENGINES,
    }
    for name, known in choices.items():
        value = getattr(config, name)
        if value is not None and value not in known:
            raise ConfigError(f"{name}: unknown value {value!r}; known: {', '.join(known)}")
    if config.dataset not in DATASETS and not config.dataset.endswith(".npz"):
        raise ConfigError(
            f"dataset: unknown value {config.dataset!r}; known: {', '.join(DATASETS)}, or the path of an .npz file"
        )
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", config.device):
        raise ConfigError(f"device: unknown value {config.device!r}; known: auto, cpu, cuda, cuda:N")


def _check_ranges(config: RunConfig) -> None:
    rules: list[tuple[str, float, bool, float]] = [  # name, lower bound, whether it is allowed itself, upper bound
        ("alpha", 0, False, math.inf),
        ("shards_per_client", 1, True, math.inf),
        ("clients", 1, True, math.inf),
        ("participation", 0, False, 1),
        ("rounds", 1, True, math.inf),
        ("local_steps", 1, True, 10**6),
        ("batch_size", 1, True, math.inf),
        ("lr", 0, False, math.inf),
        ("server_lr", 0, False, math.inf),
        ("weight_decay", 0, True, math.inf),
        ("momentum", 0, True, 1),
        ("clip_norm", 0, False, math.inf),
        ("rho", 0, True, math.inf),
        ("prox", 0, True, math.inf),
        ("gradient_share", 0, False, 1),
        ("beta", 0, True, 1),
        ("seed", 0, True, 2**63 - 1),
        ("threads", 1, True, 1024),
        ("eval_every", 1, True, math.inf),
        ("checkpoint_every", 0, True, math.inf),
        ("synthetic_start", 1, True, math.inf),
        ("synthetic_every", 0, True, math.inf),
        ("synthetic_images", 1, True, math.inf),
        ("synthetic_steps", 1, True, math.inf),
        ("synthetic_segment", 1, True, math.inf),
        ("synthetic_window", 1, True, math.inf),
        ("finetune_steps", 1, True, math.inf),
    ]
    for name, low, inclusive, high in rules:
        value = getattr(config, name)
        if value is None:
            continue
        if name == "alpha" and value == math.inf:  # every class split evenly
            continue
        if not (math.isfinite(value) and (value >= low if inclusive else value > low) and value <= high):
            above = "" if high == math.inf else f" and at most {high}"
            bounds = f"{'at least' if inclusive else 'above'} {low}{above}"
            or_inf = ", or inf" if name == "alpha" else ""
            raise ConfigError(f"{name}: {value!r} is out of range; give a finite number {bounds}{or_inf}")
