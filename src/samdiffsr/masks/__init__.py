"""Region masks of photographs: segmenters, mask files, previews, whole folders."""
