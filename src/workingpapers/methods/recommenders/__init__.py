"""Models of clicks and recommendations, and what they share: schema, field embedding, training, metrics."""
