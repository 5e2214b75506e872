"""Other people's tools, a few lines each."""
