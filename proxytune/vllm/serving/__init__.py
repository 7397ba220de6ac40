"""vLLM's OpenAI server over a composite, with α in the request; importing it needs no vllm."""
