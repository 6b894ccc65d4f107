"""Named complete run configurations (YAML), DeepSpeed JSON and cluster templates."""
