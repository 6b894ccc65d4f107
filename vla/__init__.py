"""The policy: backbone, processor, action space, flow-matching action expert, sampling."""

from vla.foreign_torchvision import declare_missing_operators

# Before any module of this package imports transformers.
declare_missing_operators()
