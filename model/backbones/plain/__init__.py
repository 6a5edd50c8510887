"""Backbones that ignore the scenario."""
