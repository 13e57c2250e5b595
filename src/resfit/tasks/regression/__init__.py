"""Regression: predict one number or several of an image, with intervals."""
