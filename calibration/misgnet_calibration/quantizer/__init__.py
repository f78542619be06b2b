"""Quantizes graphs by rules and recipes: Q/DQ nodes and float16. Recipes and rules can be imported without onnx."""
