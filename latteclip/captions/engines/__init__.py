"""What answers: vLLM, transformers, a server, a file."""
