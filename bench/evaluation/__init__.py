"""What the evaluation is run on: labelled photographs out of published packages, fetched and never redistributed."""
