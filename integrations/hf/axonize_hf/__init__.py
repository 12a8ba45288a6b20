"""Axonize for Hugging Face transformers: ``pipe = axonize_hf.instrument(pipeline(...))``.

Importing this package imports neither torch nor transformers.
"""

from __future__ import annotations

from axonize_hf.context import RequestContext, request, requests
from axonize_hf.instrumentation import instrument, uninstrument

__all__ = ["RequestContext", "instrument", "request", "requests", "uninstrument"]
