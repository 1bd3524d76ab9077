"""Models as they are read, encoded, run, quantized and scored with."""
