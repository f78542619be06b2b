"""Where a bundle's own files lie in its folder, and how much it may hold."""

from misgnet_runtime.limits import BUNDLE_BYTES, BUNDLE_FILES

MANIFEST = "manifest.json"
SIGNATURE = "model.sig"  # as OpenSSF Model Signing names it
MAX_BYTES = BUNDLE_BYTES  # of all files
MAX_ENTRIES = BUNDLE_FILES  # files and folders
