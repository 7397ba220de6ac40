"""A base behind an OpenAI-compatible API: token ids in, next-token distributions out. Knows nothing of torch."""
