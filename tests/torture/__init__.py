"""Thousands of seeded attempts to break torchpeek: `make torture`. A sample of them runs in tests/test_torture.py."""
