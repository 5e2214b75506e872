"""Integrations with other tools, a few lines each."""
