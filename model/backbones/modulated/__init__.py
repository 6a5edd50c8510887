"""Backbones with weights, inputs or neurons that depend on the scenario."""
