"""How images come in: folders and tables, decoding, splits."""
