"""What scores choices: vLLM, transformers, a server, a file."""
