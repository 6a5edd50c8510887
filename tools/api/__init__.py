"""Multi-scenario recommendation on TorchRec with a frozen LLM in the loop."""
