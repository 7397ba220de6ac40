"""Runtime 2: the composite inside vLLM. The only folder that imports vllm; importing it needs none of it."""
