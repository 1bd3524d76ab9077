"""The stage `evaluate`: every system on the same judged rows, metrics, significance, slices."""
