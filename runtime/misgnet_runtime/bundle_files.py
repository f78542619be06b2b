"""Where a bundle's own files lie in its folder, and how much it may hold."""

MANIFEST = "manifest.json"
SIGNATURE = "model.sig"  # as OpenSSF Model Signing names it
MAX_BYTES = 16 << 30  # of all files: a sparse file of any size costs who sends it nothing
MAX_ENTRIES = 10_000  # files and folders
