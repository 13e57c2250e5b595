"""Files on this machine: atomic writes, locks, and the cache."""
