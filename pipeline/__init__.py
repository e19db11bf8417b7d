"""Raw request logs in, published daily and monthly rollups out."""
