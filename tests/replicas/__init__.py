"""Slow implementations to test against: float64 loops written from the papers, sharing no code with src/."""
