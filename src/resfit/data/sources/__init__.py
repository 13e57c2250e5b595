"""Files that hold images: one module a kind, each registered with :func:`resfit.data.sources.base.register_source`."""
