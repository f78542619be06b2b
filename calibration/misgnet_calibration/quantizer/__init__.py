"""Where and how a graph is quantized: rules, recipes, Q/DQ nodes, float16. Recipes and rules load without onnx."""
