"""Is it real dust? Spectra, moments and Minkowski functionals of patches, with their controls."""
