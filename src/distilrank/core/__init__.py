"""Basis of all other packages: errors, progress, sealed artifacts, table schemas, text and hardware."""
