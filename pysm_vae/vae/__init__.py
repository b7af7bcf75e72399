"""The learning wing: from maps of real dust to weights, and from weights to seeded patches."""
