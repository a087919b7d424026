"""What was invented: one module per paper, in the room where the method plugs into a model."""
