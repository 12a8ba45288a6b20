"""The engine in one process, as `LLM(...)` makes it: asked for, and not."""

from __future__ import annotations


def test_an_engine_in_one_process(offline, capture):
    """`LLM.generate` is recorded like a server."""
    facts = offline("""
        answers = make_llm().generate(["hello world"] * 3, SamplingParams(max_tokens=4, ignore_eos=True, temperature=0))
        report([len(a.outputs[0].token_ids) for a in answers])
    """)
    assert facts == [4, 4, 4]
    assert [s["gen_ai.usage.output_tokens"] for s in capture.wait_for(3)] == facts


def test_no_span_unless_asked_for(offline, capture):
    """Installed but not asked for, nothing is recorded and no agent started."""
    facts = offline('report(len(make_llm().generate(["hello"], SamplingParams(max_tokens=2))))', axonize=False)
    assert facts == 1
    assert capture.requests == []
