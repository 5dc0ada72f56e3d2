"""By hand and from Python: check, verify, export; mask an image, attribute a loader."""
