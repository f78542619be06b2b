"""Who made a bundle: signatures of OpenSSF Model Signing, checked offline before anything of a bundle is read.

    policy       what the operator requires: a key file, from the command line, the environment or a call; policy files
    policy_file  those files: which keys may sign a product, and how old its bundles may be
    requirement  key and policy files alike, and which of their entries a bundle meets
    keys         key files: public keys and certificates, which of them signed, and the chain to a trusted certificate
    envelope     the signature file taken apart: Sigstore bundle, DSSE envelope, in-toto statement
    names        which names may be signed
    files        a folder against the statement, and a copy that nobody else can change
    release      which version a bundle is, and whether it may still be run
    rollback     the newest version that was accepted here, in a folder of this user alone
    verify       all of it in order: a checked bundle

The library itself is needed only to sign. Here the one dependency is ``cryptography`` (extra ``[verify]``).
"""
