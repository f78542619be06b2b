"""Makes an INT8 graph more accurate: SmoothQuant, learned rounding, bias correction, and accuracy control.

Import from the modules: accuracy control, whose steps ``misgnet-export parity`` shows, loads without onnx.
"""
