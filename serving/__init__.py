"""HTTP answers from the published rollups."""
