"""The stages `gate` and `promote`."""
