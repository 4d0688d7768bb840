"""Scripts and files behind every number in docs, and their records."""
