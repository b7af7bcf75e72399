"""The sky wing: from seeded patches to small scales on HEALPix pixels, and to brightness."""
