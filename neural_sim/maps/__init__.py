"""Road maps in and out: OpenDRIVE, and the lane tables inside NuRec scenes."""
