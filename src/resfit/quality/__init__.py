"""What is wrong with a data set: duplicates, leaks, label errors, shortcuts."""
