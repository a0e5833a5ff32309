"""Pages and contact sheets that people look at, made from the store alone and opened from disk."""
