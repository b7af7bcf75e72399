"""Non-Gaussian Galactic dust for PySM 3, learned from Planck with a variational autoencoder."""
