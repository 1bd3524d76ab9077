"""What everything else rests on: errors, progress, artifacts and their seals, rows' schemas, text, this machine."""
