"""Commands of the page; each imports what it needs when it runs."""
