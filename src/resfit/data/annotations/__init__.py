"""Annotations of boxes as labelling tools write them: one module a format, each registered in `table.py`."""
