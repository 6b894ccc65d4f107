"""The policy: backbone, processor, action space, flow-matching action expert, sampling."""
