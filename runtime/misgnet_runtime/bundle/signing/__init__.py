"""Checks signatures of OpenSSF Model Signing offline, before anything else of a bundle is read.

    policy       determines what is required: a key from the command line, the environment or a call; policy files
    policy_file  reads policy files: which keys may sign a product, and how old its bundles may be
    requirement  finds the entries of key files and policy files that a bundle meets
    keys         reads key files, finds the signing key, and verifies the chain to a trusted certificate
    envelope     parses the signature file: Sigstore bundle, DSSE envelope, in-toto statement
    names        checks the names of signed files
    files        compares a folder with the signed digests, and copies it if another user could change it
    release      determines a bundle's version, and whether it may still be run
    rollback     stores the newest accepted version in a folder that only this user can write
    verify       runs all checks in order and returns the checked bundle

The ``model-signing`` library is needed only to sign. Checking needs ``cryptography`` (extra ``[verify]``).
"""
