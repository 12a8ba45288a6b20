"""Runs the rows of the matrix on the transformers that is importable; prints one JSON line per row."""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings

import torch
import transformers

from hf_matrix_case import Case, run_case
from hf_matrix_generate import CASES as GENERATE
from hf_matrix_objects import CASES as OBJECTS
from hf_matrix_pipelines import CASES as PIPELINES
from hf_matrix_vision import CASES as VISION

GROUPS: dict[str, list[Case]] = {"generate": GENERATE, "pipelines": [*PIPELINES, *VISION], "objects": OBJECTS}


def main(wanted: list[str]) -> None:
    """Run the rows whose task or mode contains one of the words, all without any."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    # What the library prints is not ours to parse.
    out, sys.stdout = sys.stdout, sys.stderr
    for group, cases in GROUPS.items():
        for case in cases:
            if not wanted or any(word in f"{case.task} {case.mode}" for word in wanted):
                print(json.dumps({"group": group, **_row(case)}), file=out, flush=True)


def _row(case: Case) -> dict[str, str | float]:
    started = time.perf_counter()
    result, why = run_case(case)
    took_s = round(time.perf_counter() - started, 3)
    return {"task": case.task, "mode": case.mode, "result": result, "why": why, "took_s": took_s}


if __name__ == "__main__":
    main(sys.argv[1:])
