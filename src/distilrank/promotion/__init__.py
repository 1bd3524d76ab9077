"""The stages `gate` and `promote`: decide on a student, and publish it as the champion."""
