"""The page over HTTP: one application, a module of routes for each part of it."""
