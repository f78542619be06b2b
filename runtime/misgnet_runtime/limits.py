"""How much of a file from outside is read: each limit stands here once, for its reader, for SECURITY.md and for tests.

``python tests/limits --table`` prints the table of SECURITY.md, and ``tests/test_limits.py`` measures that no file takes
more seconds or memory than a row promises.
"""

from __future__ import annotations

from dataclasses import dataclass

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

MANIFEST_BYTES = 4 * MIB
BUNDLE_BYTES = 16 * GIB
BUNDLE_FILES = 10_000

PICKLE_BYTES = 4 * MIB
PICKLE_STEPS = 1_000_000
PICKLE_KEY = 500
CHECKPOINT_DIRECTORY_BYTES = 4 * MIB
CHECKPOINT_ENTRIES = 20_000
WEIGHTS_BYTES = 1 * GIB
SAFETENSORS_HEADER_BYTES = 4 * MIB

IMAGE_PIXELS = 178_956_970
IMAGE_CHUNKS = 100_000
JPEG_SCANS = 32
TIFF_TAGS = 1_000
TIFF_TAG_BYTES = 16 * MIB

ARCHIVE_BYTES = 512 * MIB
ARCHIVE_DIRECTORY_BYTES = 64 * KIB
OBSERVATIONS_HEADER_BYTES = 4 * MIB

FEATURES_FOOTER_BYTES = 16 * MIB
JOURNAL_LINE_BYTES = 4 * MIB
TUNING_BYTES = 1 * MIB
PLAN_RECORD_BYTES = 1 * MIB
KERNEL_TIMINGS_BYTES = 512 * MIB

TABLE_BYTES = 64 * MIB
TABLE_SCENES = 500_000
TABLE_CELL = 4096
