"""Region masks: reading the files that segment-anything's automatic mask generator writes."""
