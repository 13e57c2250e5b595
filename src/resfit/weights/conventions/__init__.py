"""Naming conventions of other libraries, one file each."""
