"""Data-set runs: every picture of a data set explained, into a folder that goes on where it stopped."""
