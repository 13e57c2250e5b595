"""Readers, one file a format: each yields arrays under the names of its source."""
