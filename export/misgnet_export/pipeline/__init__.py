"""From a checkpoint to a verified bundle: ``build`` calls the stages, a file each, in order."""
