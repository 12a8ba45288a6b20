"""The errors Axonize raises; each message names the thing, the value and the next step."""

from __future__ import annotations

__all__ = ["AxonizeError", "ConfigurationError", "IntegrationUnavailableError", "StoreError"]


class AxonizeError(Exception):
    """Base of all."""


class ConfigurationError(AxonizeError):
    """A setting has a value that cannot be used."""


class IntegrationUnavailableError(AxonizeError):
    """The host framework is missing, or is no object we can instrument."""


class StoreError(AxonizeError):
    """The store or the registry refused or cannot be reached."""
