"""Models: loading, encoding, inference, quantization and scoring."""
