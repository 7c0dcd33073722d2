"""A search over settings: what to try next, and what came of it."""
