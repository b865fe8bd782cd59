"""Payloads: the compressed form of an update, its bytes, and all validation of bytes that arrive."""

from .aggregation import aggregate
from .manifest import Like, Manifest, Update
from .payload import Payload, PayloadInfo, SectionInfo

__all__ = ["Like", "Manifest", "Payload", "PayloadInfo", "SectionInfo", "Update", "aggregate"]
