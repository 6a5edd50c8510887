"""Backbones that mix experts by gates."""
