"""Compiles a checkpoint into a verified bundle: ``build`` calls the stages in order, one module per stage."""
