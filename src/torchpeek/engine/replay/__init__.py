"""Run only what comes after a layer."""
