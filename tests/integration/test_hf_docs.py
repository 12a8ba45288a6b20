"""The examples of docs/huggingface.md run, and record what they say."""

from __future__ import annotations

import re
from pathlib import Path

from axonize_core.testing import capture_events

GUIDE = Path(__file__).resolve().parents[2] / "docs/huggingface.md"


def test_the_guide_runs(llama, tokenizer):
    """All Python blocks run in their order; the requests have the ids and the trace that the guide gives them."""
    blocks = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    names = {"model": llama, "tokenizer": tokenizer}
    with capture_events() as seen:
        for block in blocks:
            exec(block, names)
        names["pipe"]("the model", max_new_tokens=2)
    assert [event.request_id for event in seen.requests] == [None, "r-17", "r-18", "r-19"]
    assert seen.requests[1].ref.trace_id == 0x4BF92F3577B34DA6A3CE929D0E0E4736
