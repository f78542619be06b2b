"""Reads the machine's sensors: power by rail, power mode, clocks, temperatures and throttling.

Every reader takes the root of the file system as an argument, so that tests can pass a fake tree.
"""
