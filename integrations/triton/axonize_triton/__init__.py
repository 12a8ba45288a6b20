"""Axonize for models of Triton's Python backend: ``@axonize_triton.instrument`` on ``TritonPythonModel``.

Importing this costs little and starts nothing: Triton imports a model's file also to ask for its configuration.
"""

from axonize_triton.context import call, tokens
from axonize_triton.model import attach, instrument

__all__ = ["attach", "call", "instrument", "tokens"]
