"""On what: data sets and pre-trained models by name, packaged, downloaded once, or the user's own."""
