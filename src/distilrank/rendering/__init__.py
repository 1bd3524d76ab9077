"""How results are shown to people: formatting, labels, figures and page templates."""
