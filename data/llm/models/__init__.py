"""Folders of frozen models: their files, and the length of prompts that they take."""
