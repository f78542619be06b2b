"""Who made a bundle: signatures of OpenSSF Model Signing, checked offline before anything of a bundle is read.

    policy     what the operator requires: a key file, from the command line, the environment or a call
    keys       that file: public keys and certificates, and which of them signed
    envelope   the signature file taken apart: Sigstore bundle, DSSE envelope, in-toto statement
    files      a folder against the statement, and a copy that nobody else can change
    release    which version a bundle is, and whether it may still be run
    state      the newest version that was accepted here, in a folder of this user alone
    signed     all of it in order: a checked bundle

The library itself is needed only to sign. Here the one dependency is ``cryptography`` (extra ``[verify]``).
"""
