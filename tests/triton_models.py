"""The models of the real server's tests, as a repository: which they are, and how Triton is to run each."""

from __future__ import annotations

import shutil
from pathlib import Path

__all__ = ["DECOUPLED", "write_repository"]

FOLDER = Path(__file__).parent / "tritonserver" / "models"
_BATCHING = "max_batch_size: 8\ndynamic_batching { max_queue_delay_microseconds: 2000 }"
_DECOUPLED = "max_batch_size: 8\nmodel_transaction_policy { decoupled: True }"
_CONFIGS = {
    "plain": _BATCHING,
    # As many as come within its delay are executed together.
    "slow": "max_batch_size: 8\ndynamic_batching { preferred_batch_size: 6 max_queue_delay_microseconds: 2000000 }",
    "bare": _BATCHING,
    "attached": _BATCHING,
    "fragile": "max_batch_size: 8",
    "two": "max_batch_size: 1",
    "caller": "max_batch_size: 8",
    "stream": _DECOUPLED,
    "stream_thread": _DECOUPLED,
    "stream_async": _DECOUPLED,
    "patient": _DECOUPLED,
    "iterative": _DECOUPLED + "\nsequence_batching { iterative_sequence: true }",
}
_SOURCES = {"slow": "plain", "two": "plain"}
DECOUPLED = tuple(name for name, config in _CONFIGS.items() if "decoupled" in config)
_TENSORS = """
input [{name: "IN" data_type: TYPE_FP32 dims: [1]}]
output [{name: "OUT" data_type: TYPE_FP32 dims: [1]}]
"""
_ENSEMBLE = """
platform: "ensemble"
max_batch_size: 8
ensemble_scheduling {
  step [
    {model_name: "plain" model_version: -1 input_map {key: "IN" value: "IN"} output_map {key: "OUT" value: "half"}},
    {model_name: "attached" model_version: -1 input_map {key: "IN" value: "half"} output_map {key: "OUT" value: "OUT"}}
  ]
}
"""


def write_repository(folder: Path, *names: str) -> Path:
    """Write a repository with these models, by default all; ``together`` is an ensemble of plain and attached."""
    for name in names or (*_CONFIGS, "together"):
        (folder / name / "1").mkdir(parents=True)
        if name == "together":
            config = _ENSEMBLE
        else:
            instances = f"instance_group [{{kind: KIND_CPU count: {2 if name == 'two' else 1}}}]"
            config = f'backend: "python"\n{instances}\n{_CONFIGS[name]}'
            shutil.copy(FOLDER / f"{_SOURCES.get(name, name)}.py", folder / name / "1" / "model.py")
        (folder / name / "config.pbtxt").write_text(f'name: "{name}"\n{config}{_TENSORS}')
    return folder
