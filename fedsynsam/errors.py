"""The typed exceptions of fedsynsam. Each message names the culprit and says what would be right.

Every class also derives from the built-in exception people would expect, so that `except ValueError`
around a call keeps working.
"""


class FedSynSamError(Exception):
    """Base of every error that fedsynsam raises on purpose."""


class ArgumentError(FedSynSamError, ValueError):
    """An argument has a value, shape, dtype or device that the call cannot take."""


class SpecError(ArgumentError):
    """A compressor spec string (`"topk:0.01+quantize:4"`) cannot be understood."""


class NonFiniteError(FedSynSamError, ValueError):
    """An update holds NaN or infinity, so that nothing was sent and the residual is unchanged; or a Hessian does."""

    row = 0
    """The first row of a batch of updates that is not finite."""


class PayloadError(FedSynSamError, ValueError):
    """The bytes of a payload are not a legal payload for the expected tensors."""


class StateError(FedSynSamError, ValueError):
    """A compressor or optimizer state does not fit the tensors or configuration it is used with."""


class BackendError(FedSynSamError, RuntimeError):
    """A backend was asked for that cannot run here; the message says why."""


class ConfigError(FedSynSamError, ValueError):
    """A run's configuration is wrong: unknown key, illegal value, missing file."""


class DataError(ConfigError):
    """A data set is missing, damaged, or cannot be split as asked."""


class RankError(FedSynSamError, RuntimeError):
    """Another process of the same run is gone."""


class CheckpointError(FedSynSamError, ValueError):
    """A checkpoint is damaged or belongs to another configuration."""
