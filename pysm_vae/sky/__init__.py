"""The sky wing: from seeded patches to log-space small scales on HEALPix pixels, and to brightness."""
