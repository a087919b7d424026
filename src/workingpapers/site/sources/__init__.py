"""Where papers come from: one small adapter for each source."""
