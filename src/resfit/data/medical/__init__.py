"""Medical images: DICOM and NIfTI files, patients, and what may be told of them."""
