"""The frozen language model: prompts, encoder, knowledge store."""
