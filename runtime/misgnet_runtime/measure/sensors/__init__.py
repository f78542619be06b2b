"""What a machine's own sensors tell: power by rail, power mode, clocks, temperatures, throttling.

Every reader takes the root of the file system, so that tests give it a tree of their own.
"""
