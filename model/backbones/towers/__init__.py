"""Backbones with a separate MLP per scenario."""
