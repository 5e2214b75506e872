"""The check for NaN and infinity: check_finite()."""
