"""Measurements on the device: benchmark, tuning and sensors."""
