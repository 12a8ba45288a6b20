"""vLLM, recorded: ``vllm serve MODEL --plugin axonize``. Importing this package imports nothing of vLLM."""
