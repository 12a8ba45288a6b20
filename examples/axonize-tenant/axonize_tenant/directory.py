"""The file of tenants, read again when it changes."""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Directory", "Tenant"]

LOOK_S = 1.0
logger = logging.getLogger(__name__)


class Tenant(NamedTuple):
    """What is added to the spans of a tenant's requests; an unknown price is None."""

    attributes: dict[str, Any]
    usd_per_1k_output_tokens: float | None


class Directory:
    """Tenants by the value of one request attribute.

    A changed file that cannot be read leaves what was known before, and ``error`` says why.
    """

    def __init__(self, path: Path) -> None:
        self.error = ""
        self.attribute = ""
        self.tenants: dict[str, Tenant] = {}
        self._path = path
        self._looked_at = time.monotonic()
        self._modified_ns = 0
        self._read()

    def refresh(self) -> None:
        """Read the file if it changed; looks at most once a second."""
        if time.monotonic() - self._looked_at < LOOK_S:
            return
        self._looked_at = time.monotonic()
        try:
            self._read()
        except (OSError, ValueError) as e:
            if repr(e) != self.error:
                logger.error("%s is not used: %r; what was known before stays", self._path, e)  # noqa: TRY400
            self.error = repr(e)

    def _read(self) -> None:
        modified_ns = self._path.stat().st_mtime_ns
        if modified_ns == self._modified_ns:
            return
        found = _parse(self._path)
        try:
            attribute = str(found["attribute"])
            tenants = {str(key): _tenant(dict(value)) for key, value in found["tenants"].items()}
        except (TypeError, KeyError, AttributeError) as e:
            raise ValueError(f"{self._path} is no object with 'attribute' and 'tenants': {e!r}") from e
        self.attribute, self.tenants, self._modified_ns, self.error = attribute, tenants, modified_ns, ""


def _tenant(given: dict[str, Any]) -> Tenant:
    price = given.pop("usd_per_1k_output_tokens", None)
    return Tenant(given, None if price is None else float(price))


def _parse(path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return json.loads(text)
    try:
        import yaml  # noqa: PLC0415 - an extra
    except ImportError as e:
        raise ValueError(f"{path} needs PyYAML: pip install 'axonize-tenant[yaml]'") from e
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise ValueError(f"{path} is no YAML: {e}") from e
