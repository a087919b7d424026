"""Ways to read features out of a frozen backbone."""
