"""A real vLLM on the CPU, a load whose own counts are the truth, and incidents made on purpose."""
