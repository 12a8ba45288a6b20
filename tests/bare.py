"""Run where only the wheel is installed: the parts beside inference work, and nothing of the collector is there."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "transformers", "clickhouse_connect", "chdb", "starlette", "pydantic", "rich", "grpc")
INFERENCE_SIDE = "axonize_core.recorder, axonize_core.shipper, axonize_core.frames, axonize_core.settings"


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


def main() -> None:
    """Exit with a message at the first thing that is not as it should be."""
    listed = f"import sys, axonize_hf, axonize_core.agent, {INFERENCE_SIDE}; print(*sys.modules)"
    imported = _run("-c", listed)
    if imported.returncode:
        sys.exit(imported.stderr)
    if heavy := {name.partition(".")[0] for name in imported.stdout.split()} & set(HEAVY):
        sys.exit(f"a bare installation imports {sorted(heavy)}")
    refused = _run("-c", "from axonize_core.cli import main; main()", "collector")
    if "pip install 'axonize[server,embedded]'" not in refused.stderr:
        sys.exit(f"axonize collector does not name the extra: {refused.stdout}{refused.stderr}")
    print("bare installation: nothing heavy imported, the collector names its extra")


if __name__ == "__main__":
    main()
