"""Axonize plugin: writes events to Parquet files; see README.md for its settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from axonize_core import hookimpl
from axonize_parquet.sink import ParquetSink

if TYPE_CHECKING:
    from collections.abc import Mapping

    from axonize_core.plugins import AgentContext

__all__ = ["Limits", "axonize_configure"]

PREFIX = "AXONIZE_PLUGIN_PARQUET_"


@dataclass(frozen=True)
class Limits:
    """When rows become a row group, a row group ends its file, and rows are dropped."""

    row_group_rows: int = 10_000
    file_mb: int = 128
    file_s: int = 300
    queue_rows: int = 100_000

    @classmethod
    def from_settings(cls, settings: Mapping[str, str]) -> Limits:
        """Read what is set; a value that is no number is an error."""
        names = {name: f"{PREFIX}{name.upper()}" for name in cls.__dataclass_fields__}
        return cls(**{name: int(settings[variable]) for name, variable in names.items() if variable in settings})


@hookimpl
def axonize_configure(context: AgentContext) -> None:
    """Begin to write.

    Raises:
        ValueError: the directory is not set, or a limit is no number.
        OSError: the directory cannot be made.
    """
    settings = context.settings.plugin_settings
    directory = settings.get(f"{PREFIX}DIR")
    if not directory:
        raise ValueError(f"set {PREFIX}DIR to the directory to write to")
    context.plugins.register(
        ParquetSink(Path(directory), Limits.from_settings(settings)), "axonize_parquet.ParquetSink"
    )
