"""Interest blocks: frozen item vectors, matched with ordered histories across scenarios."""
