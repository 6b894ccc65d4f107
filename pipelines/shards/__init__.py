"""Training examples on disk: WebDataset tars with an index, readable with plain tarfile, JPEG, npy and JSON."""
