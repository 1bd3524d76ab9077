"""The stages `teacher` and `label`: an LLM is fine-tuned and scores the log."""
