"""Pictures for people: maps from above, boxes and lanes in camera images, contact sheets."""
